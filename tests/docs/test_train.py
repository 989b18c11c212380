"""Every command that trains or tests: its config, its options, and its learning rate."""

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip('mim')

from mmengine.config import Config

from contnet_mm.apis.config import find_config
from contnet_mm.apis.launch import library_of
from contnet_mm.reproduce.launch import Cluster, plan_launch
from tests.helpers import ROOT, run_python
from tests.mim_commands import changes_of, known_options, parse

PAGE = (ROOT / 'docs' / 'train.md').read_text()
ROWS = re.findall(r'^\| (\d+) \| (\d+) \| `(mim train .*?)` \|$', PAGE, re.MULTILINE)
PAGES = [ROOT / 'README.md', *ROOT.glob('docs/*.md'), *ROOT.glob('configs/*/README.md')]
OF_THE_READER = 'my_config.py'  # tests/docs/test_docs.py builds it


def commands_of(text):
    """Return the commands of a page that train or test, without those that only name one."""
    # Backslashes at the ends of lines go on with a command; `mim train mmdet` alone is none.
    found = re.findall(
        r'^(mim (?:train|test) .*)$|`(mim (?:train|test) \w+ [^`]+?\.py[^`]*)`',
        text.replace('\\\n', ' '),
        re.MULTILINE,
    )
    return sorted({first or second for first, second in found if OF_THE_READER not in first})


COMMANDS = commands_of(PAGE)
ALL_COMMANDS = sorted({c for page in PAGES for c in commands_of(page.read_text())})


def path_of(said):
    """Return the file of a command's config, which mim finds by its name alone if it is ours."""
    ours = said.get('package') == 'contnet_mm'
    return Path(find_config(said['config'])) if ours else ROOT / said['config']


def read_config(said):
    """Return the config of a command with its --cfg-options merged."""
    config = Config.fromfile(path_of(said))
    config.merge_from_dict(changes_of(said))
    return config


def test_page_has_a_table_per_library():
    libraries = {parse(command)['package'] for _, _, command in ROWS}
    assert libraries == {'mmdet', 'mmseg', 'mmpretrain'}
    assert len(COMMANDS) >= len(ROWS) + 6


def test_other_pages_have_commands_too():
    assert len(ALL_COMMANDS) >= len(COMMANDS) + 8


@pytest.mark.parametrize('command', ALL_COMMANDS)
def test_command_names_a_config_and_options_that_exist(command):
    said = parse(command)
    assert path_of(said).is_file()
    library = library_of(str(path_of(said)))
    assert said['package'] in (library, 'contnet_mm')
    names = {word for word in said['other_args'] if word.startswith('--')}
    assert names <= known_options(library, said['verb'])


# Other pages show what a training starts from; where they name GPUs, the batch follows.
TRAININGS = [c for c in ALL_COMMANDS if parse(c)['verb'] == 'train']
TRAININGS = [c for c in TRAININGS if c in COMMANDS or '--gpus' in c]


@pytest.mark.parametrize('command', TRAININGS)
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


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[2].replace('/', ' '))
def test_row_is_what_the_launch_logic_says(row):
    name = parse(row[2])['config']
    gpus = int(row[0])
    cluster = Cluster(gpus, 'pytorch' if gpus > 1 else 'none')
    launch = plan_launch(name, Config.fromfile(ROOT / name), cluster)
    assert shlex.join(launch.train_command()) == row[2]


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


def test_the_advice_on_tf32_reaches_linear_layers():
    (line,) = re.findall(r'`(TORCH_ALLOW_TF32\w+)=1`', PAGE)
    code = 'import torch; print(torch.backends.cuda.matmul.allow_tf32)'
    assert run_python('-c', code, **{line: '1'}).stdout.strip() == 'True'
