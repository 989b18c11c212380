"""The lines of docs/train.md for best checkpoints, early stopping, TensorBoard and TTA."""

import importlib
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from contnet_mm.apis.launch import library_script
from tests.docs.test_train import COMMANDS, PAGE
from tests.helpers import ROOT
from tests.mim_commands import changes_of, parse
from tests.thin_models import TASKS, make_model

SECTION = PAGE.partition('## Best checkpoint')[2].partition('\n## ')[0]
LINES = [line.split() for line in re.findall(r'\| `(--cfg-options .*?)` \|', SECTION)]
[CONFIG_LINE] = re.findall(r'```python\n(.*?)```', SECTION, re.DOTALL)
SIZE = (68, 80)  # height and width


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch, tmp_path):
    monkeypatch.setattr(DefaultScope, '_instance_dict', DefaultScope._instance_dict.copy())
    monkeypatch.chdir(tmp_path)


class Writer(dict):
    """Takes the place of TensorBoard's writer."""

    def __init__(self, folder):
        self.folder = folder

    def add_text(self, name, text):
        self[name] = text

    def add_scalar(self, name, value, step):
        self[name] = (value, step)


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """The Runner of a thin detector with all the lines that are for a training."""
    tensorboard = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', tensorboard)
    path, _ = make_model(tmp_path, 'mmdet')
    own = tmp_path / 'own.py'
    own.write_text(f'_base_ = {str(path)!r}\n{CONFIG_LINE}')
    config = Config.fromfile(own)
    for words in LINES:
        config.merge_from_dict(changes_of({'other_args': words}))
    config.work_dir = str(tmp_path / 'work')
    config.visualizer.name = tmp_path.name  # MMEngine keeps one of each name
    return Runner.from_cfg(config)


def hook_of(runner, kind):
    [hook] = [hook for hook in runner.hooks if isinstance(hook, kind)]
    return hook


def test_lines_of_a_training_build_its_hooks_and_back_ends(runner):
    assert len(LINES) == 2
    assert hook_of(runner, CheckpointHook).save_best == ['coco/bbox_mAP']
    hook = hook_of(runner, EarlyStoppingHook)
    assert (hook.monitor, hook.rule, hook.patience) == ('coco/bbox_mAP', 'greater', 3)
    assert type(runner.visualizer).__name__ == 'DetLocalVisualizer'  # as it was
    runner.visualizer.add_scalar('loss', 0.5, step=7)
    local, tensorboard = runner.visualizer._vis_backends.values()
    assert (
        tensorboard.experiment['loss'] == (0.5, 7)
        and 'RetinaNet' in tensorboard.experiment['config']
    )
    assert '"loss": 0.5' in Path(local._scalar_save_file).read_text()


@pytest.mark.parametrize(
    ('values', 'stops'),
    [
        ([0.30, 0.31, 0.312, 0.315, 0.317, 0.319], [False] * 6),
        ([0.30, 0.30, 0.3005, 0.29], [False, False, False, True]),
    ],
)
def test_training_stops_when_ap_stands_still_and_not_before(runner, values, stops):
    hook, found = hook_of(runner, EarlyStoppingHook), []
    fake = SimpleNamespace(
        train_loop=SimpleNamespace(stop_training=False),
        logger=SimpleNamespace(info=lambda *_: None),
    )
    for value in values:
        hook.after_val_epoch(fake, {'coco/bbox_mAP': value})
        found.append(fake.train_loop.stop_training)
    assert found == stops


def test_metrics_have_the_names_that_the_page_gives():
    names = set(re.findall(r'`([\w/]+)`', SECTION))
    saved = set()
    for path in (ROOT / 'configs' / 'demo').glob('*.py'):
        saved.add(Config.fromfile(path).default_hooks.checkpoint.get('save_best'))
    assert {'coco/bbox_mAP', 'mIoU', 'accuracy/top1'} <= names & saved


def tta_config(scope, config, checkpoint, monkeypatch):
    """Return the config from which the library's test script builds its Runner under --tta."""
    [command] = [command for command in COMMANDS if '--tta' in command]
    options, built = list(parse(command)['other_args']), []

    def from_cfg(cfg):
        built.append(cfg)
        raise SystemExit

    monkeypatch.setattr(Runner, 'from_cfg', from_cfg)
    script = str(library_script(scope, 'test.py'))
    monkeypatch.setattr(sys, 'argv', [script, str(config), str(checkpoint), *options])
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setenv('LOCAL_RANK', '0')
        runpy.run_path(script, run_name='__main__')
    return built[0]


@pytest.mark.parametrize('scope', TASKS)
def test_tta_predicts_from_each_image_and_its_mirror_image(scope, tmp_path, monkeypatch):
    config, checkpoint = make_model(tmp_path, scope, winner=7)
    cfg = tta_config(scope, config, checkpoint, monkeypatch)
    cv2.imwrite('image.png', np.full((*SIZE, 3), 90, np.uint8))
    cv2.imwrite('labels.png', np.zeros(SIZE, np.uint8))
    importlib.import_module(f'{scope}.datasets')
    sample = {
        'img_path': 'image.png',
        'seg_map_path': 'labels.png',
        'reduce_zero_label': False,
        'seg_fields': [],
        'img_id': 0,
        'instances': [],
        'gt_label': 7,
    }
    with DefaultScope.overwrite_default_scope(scope):
        views = Compose(cfg.test_dataloader.dataset.pipeline)(sample)
        model = MODELS.build(cfg.model).eval()
    model.module.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    assert len(views['inputs']) == {'mmseg': 12}.get(scope, 2)
    first, second = views['inputs'][:2]
    assert torch.equal(first, second.flip(-1))
    with torch.no_grad():
        [merged] = model.test_step(pseudo_collate([views]))
    if scope == 'mmdet':
        assert (merged.pred_instances.labels == 7).all() and len(merged.pred_instances)
    elif scope == 'mmseg':
        assert merged.pred_sem_seg.data.shape == (1, *SIZE)
        assert (merged.pred_sem_seg.data == 7).all()
    else:
        assert int(merged.pred_label) == 7
