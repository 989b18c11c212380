"""Data that is removed under a training: an error that names it, and the last checkpoint stays."""

import os
import shutil

import pytest
from mmengine.registry import DefaultScope

from contnet_mm.checkpoint.read import read_checkpoint
from tests.helpers import run_python
from tests.reliability.trainings import STEPS, InterruptedTraining, make_config, make_data, train

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with data and a training of one epoch."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', DefaultScope._instance_dict.copy())
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path)
    with pytest.raises(InterruptedTraining):
        train(make_config('retinanet', tmp_path / 'work'), interrupt=STEPS)
    yield tmp_path
    last = (tmp_path / 'work' / 'last_checkpoint').read_text()
    assert read_checkpoint(last)['meta']['epoch'] == 1


@pytest.mark.parametrize('workers', [0, 2])
def test_a_removed_image_is_named(place, workers):
    paths = sorted((place / 'data/demo/coco/train').iterdir())
    for path in paths:
        path.unlink()
    with pytest.raises(FileNotFoundError, match='No such file.*data/demo/coco/train/'):
        train(make_config('retinanet', place / 'work', workers), resume=True)


def test_a_removed_annotation_is_named(place):
    (place / 'data/demo/coco/annotations/instances_train.json').unlink()
    with pytest.raises(FileNotFoundError, match='annotations/instances_train.json'):
        train(make_config('retinanet', place / 'work'), resume=True)


def test_a_failed_training_has_a_status_that_says_so(place):
    shutil.rmtree(place / 'data/demo/coco/train')
    make_config('retinanet', place / 'work').dump('config.py')
    words = ['-m', 'contnet_mm', 'train', 'config.py', '--resume']
    result = run_python(*words, cwd=place, PYTHONPATH=os.environ.get('PYTHONPATH', ''))
    assert result.returncode == 1
    assert 'FileNotFoundError' in result.stderr and 'data/demo/coco/train' in result.stderr
