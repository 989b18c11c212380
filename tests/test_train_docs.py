"""Every command of docs/train.md: its config, its options, and the learning rate it trains with."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip('mim')

from mmengine.config import Config, DictAction

from contnet_mm.doctor.facts import origin

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'docs' / 'train.md').read_text()
ROWS = re.findall(r'^\| (\d+) \| (\d+) \| `(mim train .*?)` \|$', PAGE, re.MULTILINE)
# Backslashes at the ends of lines go on with a command; `mim train mmdet` alone is none.
COMMANDS = re.findall(
    r'^(mim (?:train|test) .*?)$|`(mim (?:train|test) \w+ configs/.*?)`',
    PAGE.replace('\\\n', ' '),
    re.MULTILINE,
)
COMMANDS = sorted({(first or second) for first, second in COMMANDS})


def parse(command):
    """Return what mim understands of a command, as a dict."""
    _, verb, *words = shlex.split(command)
    cli = importlib.import_module(f'mim.commands.{verb}').cli
    return {'verb': verb, **cli.make_context(verb, words).params}


def read_config(said):
    """Return the config of a command with its --cfg-options merged."""
    config = Config.fromfile(ROOT / said['config'])
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    config.merge_from_dict(parser.parse_known_args(said['other_args'])[0].cfg_options)
    return config


def test_page_has_a_table_per_library():
    libraries = {parse(command)['package'] for _, _, command in ROWS}
    assert libraries == {'mmdet', 'mmseg', 'mmpretrain'}
    assert len(COMMANDS) >= len(ROWS) + 6


@pytest.mark.parametrize('command', COMMANDS)
def test_command_names_a_config_and_options_that_exist(command):
    said = parse(command)
    assert (ROOT / said['config']).is_file()
    script = Path(origin(said['package'])).parent / '.mim' / 'tools' / f'{said["verb"]}.py'
    known = set(re.findall(r"'(--[\w-]+)'", script.read_text()))
    assert {word for word in said['other_args'] if word.startswith('--')} <= known


@pytest.mark.parametrize('command', [c for c in COMMANDS if parse(c)['verb'] == 'train'])
def test_learning_rate_fits_the_batch(command):
    said = parse(command)
    config = read_config(said)
    batch = said['gpus'] * config.train_dataloader.batch_size
    scaled = '--auto-scale-lr' in said['other_args'] or config.auto_scale_lr.get('enable')
    assert scaled or batch == config.auto_scale_lr.base_batch_size
    assert said['launcher'] != 'none' or said['gpus'] == 1


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[2].replace('/', ' '))
def test_row_says_its_gpus_and_batch(row):
    said = parse(row[2])
    batch = said['gpus'] * read_config(said).train_dataloader.batch_size
    assert (int(row[0]), int(row[1])) == (said['gpus'], batch)


def test_slurm_command_has_what_mim_asks_for():
    (said,) = (said for said in map(parse, COMMANDS) if said['launcher'] == 'slurm')
    assert said['partition'] and said['srun_args'] == '--time=24:00:00'
    assert said['gpus'] == 2 * said['gpus_per_node'] == 16


@pytest.mark.parametrize(
    ('family', 'options'),
    [
        ('retinanet/retinanet_contnet-m_fpn_1x_coco', ['optim_wrapper.clip_grad.max_norm=35']),
        (
            'pspnet/pspnet_contnet-m-d8_4xb2-40k_cityscapes-512x1024',
            ['optim_wrapper.clip_grad.max_norm=35', 'optim_wrapper.clip_grad._delete_=True'],
        ),
    ],
)
def test_advice_on_clipping_works(family, options):
    assert all(option in PAGE for option in options)
    said = {'config': f'configs/{family}.py', 'other_args': ['--cfg-options', *options]}
    assert read_config(said).optim_wrapper.clip_grad == {'max_norm': 35}


def test_advice_on_warm_up_changes_the_warm_up():
    assert 'param_scheduler.0.end=2000' in PAGE
    said = {
        'config': 'configs/retinanet/retinanet_contnet-m_fpn_1x_coco.py',
        'other_args': ['--cfg-options', 'param_scheduler.0.end=2000'],
    }
    warm_up = read_config(said).param_scheduler[0]
    assert (warm_up.type, warm_up.begin, warm_up.end) == ('LinearLR', 0, 2000)
