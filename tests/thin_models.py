"""Small models of all three libraries, as files."""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from mmengine.registry import MODELS, DefaultScope

from contnet_mm.apis.config import read_config
from tests.conftest import THIN_ARCH
from tests.helpers import ROOT

DEMO = ROOT / 'configs' / 'demo'
# Config, what a thin backbone changes in it, and the bias that decides for a class.
TASKS = {
    'mmdet': (
        'retinanet_contnet-ti_fpn_demo.py',
        'neck=dict(in_channels=[16, 32, 64, 128])',
        'bbox_head.retina_cls.bias',
    ),
    'mmseg': (
        'pspnet_contnet-ti-d8_demo-cityscapes.py',
        'decode_head=dict(in_channels=128), auxiliary_head=dict(in_channels=64)',
        'decode_head.conv_seg.bias',
    ),
    'mmpretrain': ('contnet-ti_demo-imagenet.py', 'head=dict(in_channels=128)', 'head.fc.bias'),
}


def make_model(folder, scope, winner=3, meta=None):
    """Write a config with a thin backbone, and a checkpoint that sees one class everywhere.

    Returns:
        Their paths.
    """
    name, thin, bias = TASKS[scope]
    config = folder / f'{scope}.py'
    config.write_text(
        f'_base_ = {str(DEMO / name)!r}\n'
        f'arch = dict(_delete_=True, **{THIN_ARCH!r})\n'
        f'model = dict(backbone=dict(arch=arch), {thin})\n'
        'del arch\n'
    )
    cfg = read_config(config)
    with DefaultScope.overwrite_default_scope(scope):
        state_dict = MODELS.build(cfg.model).state_dict()
    classes = 19 if scope == 'mmseg' else 10
    state_dict[bias].fill_(-50).view(-1, classes)[:, winner] = 50
    checkpoint = folder / f'{scope}.pth'
    torch.save({'state_dict': state_dict, 'meta': meta or {}}, checkpoint)
    return config, checkpoint


@contextmanager
def own_model_hub():
    """Start with MMPretrain's list of models as it is at first, empty; restore it afterwards."""
    from mmpretrain.apis import ModelHub

    own = patch.object(ModelHub, '_ModelHub__mmpretrain_registered', False)
    with own, patch.dict(ModelHub._models_dict, clear=True):
        yield ModelHub
