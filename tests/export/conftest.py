"""Thin models of each task, exported once, whose every tensor matters."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from contnet_mm.apis.config import read_config
from contnet_mm.apis.inference import write_picture
from tests.conftest import THIN_ARCH
from tests.helpers import ROOT

pytest.importorskip('onnxruntime')

SIZE = (64, 96)


@dataclass(frozen=True)
class Case:
    """A config of the demo, and what makes it thin and cuts it behind the first stage.

    tests/models/test_export.py exports whole networks.
    """

    name: str
    model: str
    size: tuple = SIZE


HEAD = 'in_channels=16, feat_channels=16, stacked_convs=1, norm_cfg=dict(num_groups=2)'
CASES = {
    'retinanet': Case(
        'retinanet_contnet-ti_fpn_demo.py',
        'neck=dict(in_channels=[16], start_level=0, out_channels=16, num_outs=2), '
        f'bbox_head=dict({HEAD}, anchor_generator=dict(strides=[4, 8])), '
        'test_cfg=dict(nms=dict(class_agnostic=False))',
    ),
    'fcos': Case(
        'fcos_contnet-ti_fpn_demo.py',
        'neck=dict(in_channels=[16], start_level=0, out_channels=16, num_outs=1), '
        f'bbox_head=dict({HEAD}, strides=[4], regress_ranges=((-1, 1e8),))',
    ),
    'pspnet': Case(
        'pspnet_contnet-ti-d8_demo-cityscapes.py',
        'decode_head=dict(in_channels=16, channels=8, in_index=0, pool_scales=(1, 3)), '
        'auxiliary_head=dict(in_channels=16, in_index=0)',
        size=(72, 100),  # no multiple of the pooled sizes
    ),
    'classifier': Case('contnet-ti_demo-imagenet.py', 'head=dict(in_channels=16)', size=(56, 56)),
}


def write_model(folder, name):
    """Write the config and the checkpoint of a case; the config asks for weights that are not."""
    case = CASES[name]
    config = folder / f'{name}.py'
    init = dict(type='Pretrained', checkpoint='no_such_file.pth')
    config.write_text(
        f'_base_ = {str(ROOT / "configs/demo" / case.name)!r}\n'
        f'arch = dict(_delete_=True, **{THIN_ARCH!r})\n'
        f'backbone = dict(arch=arch, init_cfg={init!r}, out_indices=(0,))\n'
        f'model = dict(backbone=backbone, {case.model})\n'
        'del arch, backbone\n'
    )
    cfg = read_config(config)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        state_dict = MODELS.build(cfg.model).state_dict()
    for key, tensor in state_dict.items():
        if tensor.is_floating_point():
            matrix = tensor.dim() > 1
            tensor += 0.02 * torch.randn_like(tensor) if matrix else 0.1 * torch.rand_like(tensor)
        # Scores differ from each other, boxes overlap, and maps differ from place to place.
        if key.endswith(('_cls.weight', 'conv_seg.weight', 'fc.weight')):
            tensor.copy_(torch.randn_like(tensor) * 2 / tensor[0].numel() ** 0.5)
        if key.endswith('_cls.bias'):
            tensor.fill_(-3)
        if key.endswith('conv_reg.bias'):
            tensor.fill_(2)
    checkpoint = folder / f'{name}.pth'
    torch.save({'state_dict': state_dict}, checkpoint)
    return config, checkpoint


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """Write images of three ratios, smooth as photographs are."""
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    paths = []
    for i, (height, width) in enumerate([(64, 96), (50, 40), (30, 97)]):
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        picture = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
        paths.append(folder / f'{i}.png')
        write_picture(picture, paths[-1])
    return paths


@pytest.fixture(scope='session')
def export(tmp_path_factory):
    """Return a function that exports a case, the same file whenever it is asked for."""

    @cache
    def make(name):
        from contnet_mm.export.build import build_network
        from contnet_mm.export.onnx_file import write_onnx

        folder = tmp_path_factory.mktemp(name)
        config, checkpoint = write_model(folder, name)
        cfg = read_config(config)
        scopes = DefaultScope._instance_dict.copy()  # inferencers set the default scope for good
        network = build_network(cfg, checkpoint, CASES[name].size)
        path = Path(folder) / 'deployed.onnx'
        write_onnx(network, path, dict(config=config.name))
        DefaultScope._instance_dict = scopes
        return SimpleNamespace(
            network=network, path=path, cfg=cfg, config=config, weights=checkpoint
        )

    return make
