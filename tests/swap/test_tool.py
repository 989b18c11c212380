"""tools/swap_backbone.py writes a config that trains with ConTNet, or says why not."""

import os
import subprocess
import sys

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger

from contnet_mm.swap.plan import plan_swap
from contnet_mm.swap.text.difference import first_difference, to_plain
from tests.helpers import ROOT, run_tool

TOOL = ROOT / 'tools' / 'swap_backbone.py'
CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=5, in_channels=512, loss=dict(type='CrossEntropyLoss')
    ),
)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""
PURE = """
from mmengine.config import read_base
from mmpretrain.models import ImageClassifier, ResNet
from torch.optim import SGD

with read_base():
    from .classifier import *

model.update(dict(type=ImageClassifier, backbone=dict(type=ResNet)))
optim_wrapper.update(dict(optimizer=dict(type=SGD)))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with the config of a classifier in one below."""
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'classifier.py').write_text(CLASSIFIER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder):
    """Run the tool; give its status, output and errors."""

    def run(*arguments):
        result = run_tool('swap_backbone', *arguments)
        return result.returncode, result.stdout, result.stderr

    return run


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*.py'))


def test_a_config_is_swapped_verified_and_written(run, folder):
    status, out, error = run('mine/classifier.py', '--arch', 'Ti')
    assert (status, error) == (0, '')
    new = folder / 'classifier_contnet-ti.py'
    text = new.read_text()
    assert "\n_base_ = 'mine/classifier.py'\n" in text and 'num_classes' not in text
    assert '\n# - model.backbone: ConTNet in place of ResNet.\n' in text
    config = Config.fromfile(new)
    planned = plan_swap(Config.fromfile('mine/classifier.py'), 'tiny').config
    assert first_difference(to_plain(config), to_plain(planned)) is None
    assert config.model.backbone.type == 'contnet_mm.ConTNet'
    assert config.model.head.in_channels == 768
    lines = out.splitlines()
    assert lines[0].startswith('| key |') and any('| 512 ' in line for line in lines)
    assert lines[-2:] == [
        'classifier_contnet-ti.py',
        'mim train mmpretrain classifier_contnet-ti.py',
    ]
    assert lines[-3].startswith('verified: ')


def test_the_output_holds_no_log_of_the_libraries(run):
    _, out, _ = run('mine/classifier.py', '--arch', 'tiny')
    known = ('| ', '- ', 'to judge:', 'verified: ', 'mim train ', 'classifier_')
    assert all(line.startswith(known) for line in out.splitlines() if line)
    assert MMLogger.get_current_instance().level != 40


def test_options_reach_the_backbone(run, folder):
    options = ['position=relative', 'norm_cfg.type=GN', 'norm_cfg.num_groups=4']
    arguments = ['--arch', 'S', '--checkpoint', 'mine.pth', '-o', folder / 'mine' / 'new.py']
    status, _, error = run('mine/classifier.py', *arguments, '--backbone-option', *options)
    assert (status, error) == (0, '')
    config = Config.fromfile('mine/new.py')
    assert "_base_ = 'classifier.py'\n" in (folder / 'mine' / 'new.py').read_text()
    backbone = config.model.backbone
    assert backbone.position == 'relative' and backbone.norm_cfg == dict(type='GN', num_groups=4)
    assert backbone.init_cfg.checkpoint == 'mine.pth' and backbone.arch == 'small'


@pytest.mark.parametrize('name, options', [('classifier', ['--flat']), ('pure', [])])
def test_a_flat_config_needs_no_other(run, folder, name, options):
    (folder / 'mine' / 'pure.py').write_text(PURE)
    status, _, error = run(f'mine/{name}.py', '--arch', 'tiny', *options)
    assert (status, error) == (0, '')
    for path in (folder / 'mine').iterdir():
        if path.is_file():
            path.unlink()
    config = Config.fromfile(f'{name}_contnet-ti.py')
    assert config.model.head.num_classes == 5 and config.optim_wrapper.optimizer.lr == 0.1
    assert config.model.backbone.type == 'contnet_mm.ConTNet'


def test_a_config_of_a_library_is_inherited_by_its_name(run, folder):
    name = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
    status, _, error = run(name, '--arch', 'tiny')
    assert (status, error) == (0, '')
    new = folder / 'resnet18_8xb16_cifar10_contnet-ti.py'
    assert f"\n_base_ = '{name}'\n" in new.read_text()
    assert Config.fromfile(new).model.head.in_channels == 768


BROKEN = {
    'syntax': 'model = (\n',
    'raises': '1 / 0\n',
    'value': "int('no')\n",
    'leaves': 'raise SystemExit(3)\n',
    'scope': 'model = dict()\n',
    'data': "default_scope = 'mmdet'\ntrain_pipeline = []\n",
    'headless': "default_scope = 'mmdet'\nmodel = dict(type='FasterRCNN')\n",
    'wrong': CLASSIFIER.replace("'GlobalAveragePooling'", "'NoSuchNeck'"),
    'binary': '\0\0',
}


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            ['nowhere.py'],
            'error: reading nowhere.py: ValueError: nowhere.py is neither a file',
        ),
        (['mmdet::nowhere.py'], 'mmdet::nowhere.py is no config of an installed library'),
        (['mine'], 'mine is neither a file'),
        (
            ['mine/photo.png'],
            'error: reading mine/photo.png: OSError: ',
        ),
        (['mine/list.json'], 'reading mine/list.json: '),
        (['mine/syntax.py'], 'reading mine/syntax.py: SyntaxError: '),
        (['mine/raises.py'], 'reading mine/raises.py: ZeroDivisionError: '),
        (['mine/value.py'], 'reading mine/value.py: ValueError: invalid'),
        (['mine/leaves.py'], 'reading mine/leaves.py: SystemExit: 3'),
        (['mine/binary.py'], 'reading mine/binary.py: '),
        (['mine/scope.py'], 'default_scope of mine/scope.py is None'),
        (['mine/data.py'], 'mine/data.py: it has no model'),
        (['mine/headless.py'], 'mine/headless.py: FasterRCNN has no backbone'),
        (['mine/wrong.py'], 'NoSuchNeck'),
        (['mine/classifier.py', '--arch', 'huge'], "invalid choice: 'huge'"),
        (['mine/classifier.py', '-o', 'taken.py'], 'taken.py exists'),
        (['mine/classifier.py', '-o', 'new.yaml'], 'new.yaml must end in .py'),
        (['mine/classifier.py', '-o', 'no/new.py'], 'no is no folder'),
        (['mine/classifier.py', '--backbone-option', 'depth=50'], "'depth' is no option"),
        (['mine/classifier.py', '--backbone-option', 'arch=tiny'], "'arch' is no option"),
        (['mine/classifier.py', '--backbone-option', 'strides'], "'strides' must have the form"),
        (['mine/classifier.py', '--backbone-option', 'frozen_stages=9'], 'frozen_stages'),
    ],
)
def test_bad_input_is_named_and_leaves_no_file(run, folder, arguments, message):
    for name, text in BROKEN.items():
        (folder / 'mine' / f'{name}.py').write_text(text)
    (folder / 'mine' / 'photo.png').write_bytes(b'\x89PNG')
    (folder / 'mine' / 'list.json').write_text('[1]')
    (folder / 'taken.py').write_text('x = 1\n')
    before = sorted(os.walk(folder))
    status, out, error = run(*arguments)
    assert (status, out) == (2, '')
    assert message in error and 'Traceback' not in error
    assert sorted(os.walk(folder)) == before
    assert (folder / 'taken.py').read_text() == 'x = 1\n'


def test_what_does_not_train_is_not_written(run, folder, monkeypatch):
    import contnet_mm.swap.trial.verify
    from contnet_mm.swap.edit import SwapError

    seen = []

    def refuse(config):
        seen.append(config)
        raise SwapError('the loss is nan')

    monkeypatch.setattr(contnet_mm.swap.trial.verify, 'verify', refuse)
    status, out, error = run('mine/classifier.py', '--arch', 'tiny')
    assert (status, out) == (2, '') and 'mine/classifier.py: the loss is nan' in error
    assert files(folder) == ['mine/classifier.py']
    # What is verified was read back from the text.
    assert seen[0].filename.endswith('.unfinished.py')


def test_it_runs_as_one_of_our_commands(folder):
    command = [sys.executable, '-m', 'contnet_mm', 'swap_backbone', 'mine/classifier.py', '--help']
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 'usage: ' in result.stdout and '--backbone-option' in result.stdout
