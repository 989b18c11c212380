"""The demo's commands for real, on a few images: mim trains, resumes and tests."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from contnet_mm.demo import DemoOptions, make_demo_data

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs' / 'demo' / 'retinanet_contnet-ti_fpn_demo.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('unrelated')
    make_demo_data(folder / 'data' / 'demo', DemoOptions(num_train=8, num_val=4))
    return folder


def mim(folder, *args):
    result = subprocess.run(
        [str(Path(sys.executable).parent / 'mim'), *args],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-3000:]
    return output


def train(folder, epochs):
    options = [f'train_cfg.max_epochs={epochs}', 'train_dataloader.batch_size=4']
    work_dir = ['--work-dir', 'work']
    return mim(
        folder, 'train', 'mmdet', str(CONFIG), *work_dir, '--resume', '--cfg-options', *options
    )


def test_mim_trains_resumes_and_tests_from_an_unrelated_folder(folder):
    first = train(folder, 1)
    assert 'Epoch(train) [1][2/2]' in re.sub(r'\s+', ' ', first)
    second = train(folder, 2)
    assert 'resumed epoch: 1' in second
    assert (folder / 'work' / 'epoch_2.pth').is_file()
    checkpoint = str(folder / 'work' / 'epoch_2.pth')
    # After four iterations no score reaches the config's threshold.
    options = ['--cfg-options', 'model.test_cfg.score_thr=0.0']
    tested = mim(folder, 'test', 'mmdet', str(CONFIG), '--checkpoint', checkpoint, *options)
    assert 'Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all' in tested


def test_the_demo_script_is_valid_bash():
    subprocess.run(['bash', '-n', str(ROOT / 'tools' / 'demo.sh')], check=True)
