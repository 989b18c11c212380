"""The demo's commands for real, on a few images: mim trains and tests each family."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from contnet_mm.datasets.demo import DemoOptions, make_demo_data
from contnet_mm.doctor.facts import origin
from tests.helpers import ROOT, run_python

CONFIGS = sorted((ROOT / 'configs' / 'demo').glob('*.py'))
BOX_AP = 'Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all'
# What the library's evaluator prints in the end.
RESULTS = {
    'contnet-ti_demo-imagenet': ['accuracy/top1: '],
    'faster-rcnn_contnet-ti_fpn_demo': [BOX_AP, 'coco/bbox_mAP: '],
    'fcos_contnet-ti_fpn_demo': [BOX_AP, 'coco/bbox_mAP: '],
    'mask-rcnn_contnet-ti_fpn_demo': [BOX_AP, 'coco/bbox_mAP: ', 'coco/segm_mAP: '],
    'mask-rcnn_contnet-ti_fpn_demo-cityscapes': ['coco/segm_mAP: ', 'cityscapes/mAP: '],
    'pspnet_contnet-ti-d8_demo-cityscapes': ['mIoU: '],
    'retinanet_contnet-ti_fpn_demo': [BOX_AP, 'coco/bbox_mAP: '],
}
# Copies of a process with threads, which load data otherwise, may take seconds to end.
LOAD_HERE = {
    f'{part}_dataloader.{key}': value
    for part in ('train', 'val', 'test')
    for key, value in (('num_workers', 0), ('persistent_workers', False))
}
LOADS_HERE = [f'{key}={value}' for key, value in LOAD_HERE.items()]


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    # A Runner sets the default scope for good, the libraries' scripts an environment variable.
    monkeypatch.setattr(DefaultScope, '_instance_dict', DefaultScope._instance_dict.copy())
    monkeypatch.setenv('LOCAL_RANK', '0')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('unrelated')
    make_demo_data(folder / 'data' / 'demo', DemoOptions(num_train=8, num_val=4))
    return folder


def words_of(output):
    """Return the text of a log with single spaces, and none before a number in brackets."""
    return re.sub(r'\[ (?=\d)', '[', re.sub(r'[ \t]+', ' ', output))


@pytest.fixture
def mim(folder):
    """Run a command of mim in new processes, as at a shell; return what it prints."""

    def run(verb, library, *args, changes=()):
        words = ['--cfg-options', *LOADS_HERE, *changes]
        result = run_python('-m', 'mim', verb, library, *args, *words, cwd=folder)
        output = result.stdout + result.stderr
        assert result.returncode == 0, output[-3000:]
        return words_of(output)

    return run


@pytest.fixture
def script(folder, monkeypatch, capfd):
    """Run the script that mim runs, here, where the library is imported already."""
    monkeypatch.chdir(folder)

    def run(verb, library, *args, changes=()):
        path = Path(origin(library)).parent / '.mim' / 'tools' / f'{verb}.py'
        words = [path, *args, '--cfg-options', *LOADS_HERE, *changes]
        monkeypatch.setattr(sys, 'argv', [*map(str, words)])
        runpy.run_path(str(path), run_name='__main__')
        return words_of(''.join(capfd.readouterr()))

    return run


def options(config, length):
    """Return what makes a training that short; `length` is in epochs, or pairs of iterations."""
    if config.default_scope == 'mmseg':
        return [
            f'train_cfg.max_iters={2 * length}',
            'train_cfg.val_interval=2',
            'default_hooks.checkpoint.interval=2',
        ]
    return [f'train_cfg.max_epochs={length}']


# One of each library goes through mim; the other detectors through the same Runner, here.
BY_MIM = [path for path in CONFIGS if path.stem.startswith(('contnet', 'pspnet', 'retinanet'))]
OTHERS = [path for path in CONFIGS if path not in BY_MIM]


# A command of mim starts up to three processes, which import the library: one for each library.
@pytest.mark.parametrize('path', BY_MIM, ids=lambda path: path.stem)
def test_mim_trains_resumes_and_tests_from_an_unrelated_folder(path, folder, mim, script):
    config = Config.fromfile(path)
    library, by_epoch = config.default_scope, config.default_scope != 'mmseg'
    work_dir = folder / 'work' / path.stem

    def train(run, length):
        changes = ['train_dataloader.batch_size=4', 'default_hooks.logger.interval=1']
        changes += options(config, length)
        return run('train', library, path, '--work-dir', work_dir, '--resume', changes=changes)

    first = train(script, 1)
    assert ('Epoch(train) [1][2/' if by_epoch else 'Iter(train) [2/2]') in first
    second = train(script if library == 'mmpretrain' else mim, 2)
    assert ('resumed epoch: 1' if by_epoch else 'iter: 2') in second
    assert ('Epoch(train) [1]' if by_epoch else 'Iter(train) [1/') not in second
    assert ('Epoch(train) [2][2/' if by_epoch else 'Iter(train) [4/4]') in second
    checkpoint = work_dir / ('epoch_2.pth' if by_epoch else 'iter_4.pth')
    # After so few iterations no score reaches the detector's threshold.
    changes = ['model.test_cfg.score_thr=0.0'] if library == 'mmdet' else []
    if library == 'mmpretrain':
        tested = mim('test', library, path, '--checkpoint', checkpoint, changes=changes)
    else:
        tested = script('test', library, path, checkpoint, changes=changes)
    for result in RESULTS[path.stem]:
        assert re.sub(' +', ' ', result) in tested


@pytest.mark.parametrize('path', OTHERS, ids=lambda path: path.stem)
def test_the_other_detectors_train_and_are_evaluated(path, folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    stage = 'rcnn.' if 'rcnn' in path.stem else ''
    options = {
        'train_cfg.max_epochs': 1,
        'train_dataloader.batch_size': 4,
        f'model.test_cfg.{stage}score_thr': 0.0,
        f'model.test_cfg.{stage}max_per_img': 10,
    }
    config = Config.fromfile(path)
    config.merge_from_dict(options | LOAD_HERE | {'work_dir': str(folder / 'work' / path.stem)})
    runner = Runner.from_cfg(config)
    runner.train()
    metrics = runner.test()
    assert (folder / 'work' / path.stem / 'epoch_1.pth').is_file()
    printed = capfd.readouterr().out
    for result in RESULTS[path.stem]:
        assert result in printed if result == BOX_AP else result.removesuffix(': ') in metrics


def test_the_demo_script_is_valid_bash():
    subprocess.run(['bash', '-n', str(ROOT / 'tools' / 'demo.sh')], check=True)


def test_the_demo_script_refuses_an_unknown_name_before_it_makes_data():
    result = subprocess.run(
        ['bash', str(ROOT / 'tools' / 'demo.sh'), 'yolo_demo'], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert 'configs/demo/yolo_demo.py' in result.stderr
