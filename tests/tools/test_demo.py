"""The demo's commands for real, on a few images: mim trains and tests each family."""

import re
import subprocess

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from contnet_mm.datasets.demo import DemoOptions, make_demo_data
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


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('unrelated')
    make_demo_data(folder / 'data' / 'demo', DemoOptions(num_train=8, num_val=4))
    return folder


def mim(folder, *args):
    result = run_python('-m', 'mim', *args, cwd=folder)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-3000:]
    return re.sub(r'\[ (?=\d)', '[', re.sub(r'[ \t]+', ' ', output))


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


@pytest.mark.parametrize('path', BY_MIM, ids=lambda path: path.stem)
def test_mim_trains_resumes_and_tests_from_an_unrelated_folder(path, folder):
    config = Config.fromfile(path)
    library, by_epoch = config.default_scope, config.default_scope != 'mmseg'
    work_dir = folder / 'work' / path.stem

    def train(length):
        batch = 'train_dataloader.batch_size=4'
        return mim(
            *(folder, 'train', library, str(path), '--work-dir', str(work_dir), '--resume'),
            *('--cfg-options', batch, 'default_hooks.logger.interval=1', *options(config, length)),
        )

    first = train(1)
    assert ('Epoch(train) [1][2/' if by_epoch else 'Iter(train) [2/2]') in first
    second = train(2)
    assert ('resumed epoch: 1' if by_epoch else 'iter: 2') in second
    assert ('Epoch(train) [1]' if by_epoch else 'Iter(train) [1/') not in second
    checkpoint = work_dir / ('epoch_2.pth' if by_epoch else 'iter_4.pth')
    test = ['test', library, str(path), '--checkpoint', str(checkpoint)]
    if library == 'mmdet':
        # After so few iterations no score reaches the config's threshold.
        test += ['--cfg-options', 'model.test_cfg.score_thr=0.0']
    tested = mim(folder, *test)
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
    config.merge_from_dict({**options, 'work_dir': str(folder / 'work' / path.stem)})
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
