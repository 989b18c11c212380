"""The swap of a backbone: what goes in, what is fixed, what stays, and what is refused."""

import copy
import functools
import random
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from contnet_mm import swap_backbone
from contnet_mm.apis.config import read_config
from contnet_mm.swap import SwapError, plan_swap
from contnet_mm.swap.edit import find_value, walk
from contnet_mm.swap.pixels import MEAN, STD
from tests.helpers import ROOT

CONFIGS = ROOT / 'configs'
WIDTHS = [128, 256, 512, 1024]  # of ConT-M


@functools.cache
def read(name):
    return read_config(name)


@functools.cache
def swapped(name):
    return plan_swap(read(name))


def at(config, path):
    value = config
    for key in path.split('.'):
        value = value[int(key) if key.isdigit() else key]
    return value


# What goes in, and what is fixed ------------------------------------------------------------------

FASTER = 'mmdet::faster_rcnn/faster-rcnn_'
RGB = {'mean': MEAN, 'std': STD}

CASES = {
    # ResNets, plain and dilated, and what reads them
    f'{FASTER}r50_fpn_1x_coco.py': {
        'backbone': dict(arch='medium', frozen_stages=1, norm_eval=True),
        'neck.in_channels': WIDTHS,
    },
    f'{FASTER}r50-caffe-dc5_1x_coco.py': {
        'backbone': dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), out_indices=(3,)),
        'rpn_head.in_channels': 1024,
        'rpn_head.feat_channels': 2048,  # a choice of the head
        'roi_head.bbox_roi_extractor.out_channels': 1024,
        'roi_head.bbox_head.in_channels': 1024,
        'data_preprocessor': RGB | {'bgr_to_rgb': True},
    },
    f'{FASTER}r50-caffe-c4_ms-1x_coco.py': {
        'backbone': dict(out_indices=(2,), frozen_stages=1),
        'rpn_head.in_channels': 512,
        'roi_head.bbox_roi_extractor.out_channels': 512,
        'roi_head.shared_head': dict(
            type='contnet_mm.ConTLayer',
            arch='medium',
            norm_cfg=dict(type='BN', requires_grad=False),
            norm_eval=True,
        ),
        'roi_head.bbox_head.in_channels': 1024,
    },
    'mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py': {
        'roi_head.bbox_head.in_channels': 1024,
        'roi_head.mask_head.in_channels': 1024,
    },
    'mmdet::libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py': {'neck.0.in_channels': WIDTHS},
    'mmdet::pafpn/faster-rcnn_r50_pafpn_1x_coco.py': {'neck.in_channels': WIDTHS},
    'mmdet::detr/detr_r50_8xb2-150e_coco.py': {
        'backbone': dict(out_indices=(3,), norm_cfg=dict(type='BN', requires_grad=False)),
        'neck.in_channels': [1024],
    },
    'mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py': {
        'backbone': dict(type='contnet_mm.ConTNet', with_cp=True),
        'neck.in_channels': WIDTHS,
    },
    'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py': {'neck.in_channels': 1024},
    'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py': {'neck.in_channels': 1024},
    'mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py': {'panoptic_head.in_channels': WIDTHS},
    'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.01-coco.py': {
        'detector.neck.in_channels': WIDTHS,
        'detector.data_preprocessor': RGB | {'bgr_to_rgb': True},
    },
    # Other families
    'mmdet::hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py': {'neck.in_channels': WIDTHS},
    'mmdet::ssd/ssd300_coco.py': {
        'backbone': dict(out_indices=(1, 2)),
        'neck.in_channels': (256, 512),
        'neck.out_channels': (256, 512, 512, 256, 256, 256),
        'bbox_head.in_channels': (256, 512, 512, 256, 256, 256),
    },
    'mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py': {
        'backbone': dict(out_indices=(1, 2, 3)),
        'neck.in_channels': [1024, 512, 256],
        'data_preprocessor': RGB | {'bgr_to_rgb': True},
    },
    'mmdet::yolox/yolox_s_8xb8-300e_coco.py': {
        'neck.in_channels': [256, 512, 1024],
        'data_preprocessor': RGB | {'bgr_to_rgb': True},
    },
    # Segmentors
    'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py': {
        'backbone': dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), norm_cfg={'type': 'SyncBN'}),
        'decode_head.in_channels': 1024,
        'auxiliary_head.in_channels': 512,
        'pretrained': None,
    },
    'mmseg::fastfcn/fastfcn_r50-d32_jpu_enc_4xb2-80k_cityscapes-512x1024.py': {
        'neck.in_channels': (256, 512, 1024),
        'decode_head.in_channels': [256, 512, 2048],  # two maps go through the neck
        'auxiliary_head.in_channels': 512,
    },
    'mmseg::mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb2-80k_cityscapes-512x1024.py': {
        'backbone': dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
        'decode_head.in_channels': 1024,
        'decode_head.c1_in_channels': 128,
    },
    'mmseg::ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py': {
        'decode_head.0.in_channels': WIDTHS,
        'decode_head.1.in_channels': WIDTHS,
    },
    'mmseg::knet/knet-s3_swin-t_upernet_8xb2-adamw-80k_ade20k-512x512.py': {
        'decode_head.kernel_generate_head.in_channels': WIDTHS,
        'auxiliary_head.in_channels': 512,
    },
    # Classifiers
    'mmpretrain::resnet/resnet50_8xb32_in1k.py': {
        'backbone': dict(out_indices=(3,)),
        'head.in_channels': 1024,
    },
    'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py': {
        'neck': dict(type='GlobalAveragePooling'),
        'head.in_channels': 1024,
    },
    'mmpretrain::vgg/vgg11_8xb32_in1k.py': {
        'neck': dict(type='GlobalAveragePooling'),
        'head': dict(type='LinearClsHead', num_classes=1000, in_channels=1024),
    },
    'mmpretrain::hrnet/hrnet-w18_4xb32_in1k.py': {'neck.0.in_channels': tuple(WIDTHS)},
}


@pytest.mark.parametrize('name', CASES)
def test_backbone_goes_in_what_reads_it_is_fixed_and_all_else_stays(name):
    swap = swapped(name)
    check_what_goes_in(name, swap.config)
    check_what_stays(read(name), swap)
    if name.startswith(('mmdet', 'mmseg')):
        check_weights(swap.config)


def check_what_goes_in(name, config):
    for path, expected in CASES[name].items():
        value = at(config.model, path)
        if isinstance(expected, dict):
            value = {key: value.get(key) for key in expected}
        assert value == expected, path
    assert config.custom_imports['imports'][-1] == 'contnet_mm'


def check_what_stays(original, swap):
    """Check that every key that no change names is as it was."""
    before, after = (flatten(config.to_dict()) for config in (original, swap.config))
    changed = list(swap.changes)
    for path in before.keys() | after.keys():
        if not any(path[: len(each)] == each for each in changed):
            assert before.get(path) == after.get(path), path
    for path in changed:
        old, new = (find_value(config, path, 'missing') for config in (original, swap.config))
        assert old != new, path


def check_weights(config):
    """Check that no weights of the old backbone are left."""
    assert not config.get('load_from')
    for path, cfg in walk(config.model.to_dict()):
        assert not cfg.get('pretrained'), path
        init = cfg.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            assert init['checkpoint'] == 'checkpoints/contnet-m_in1k.pth', path


def flatten(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    flat = {}
    for key, item in items:
        flat[(*path, key)] = item
        if isinstance(item, (dict, list)):
            flat[(*path, key)] = type(item)
            flat.update(flatten(item, (*path, key)))
    return flat


def test_caller_keeps_the_config_the_random_numbers_and_the_default_scope(monkeypatch):
    monkeypatch.setattr(DefaultScope, '_instance_dict', DefaultScope._instance_dict.copy())
    config = read(f'{FASTER}r50_fpn_1x_coco.py')
    before = copy.deepcopy(config.to_dict())
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    DefaultScope.get_instance('caller', scope_name='mmseg')
    swap_backbone(config)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert config.to_dict() == before
    assert DefaultScope.get_current_instance().scope_name == 'mmseg'


# The same as by hand ------------------------------------------------------------------------------


def library_parent(path):
    """Return the config of a library that one of ours inherits from, in the end.

    None for one that puts several parts of a library together.
    """
    base = re.search(r"^_base_ = '(.+)'$", path.read_text(), re.MULTILINE)
    if base is None or '::' in base[1]:
        return base and base[1]
    return library_parent(path.parent / base[1])


def by_hand():
    """Yield one config of ours for each parent in a library and each arch."""
    seen = set()
    for path in sorted(CONFIGS.glob('[!_]*/*contnet*.py')):
        if path.parent.name != 'demo':
            arch = Config.fromfile(path, import_custom_modules=False).model.backbone.arch
            parent = library_parent(path)
            if parent is not None and (parent, arch) not in seen:
                seen.add((parent, arch))
                yield pytest.param(path, arch, id=path.stem)


@pytest.mark.parametrize(('path', 'arch'), [*by_hand()])
def test_swapped_config_gives_the_model_of_the_config_by_hand(path, arch):
    expected = read_config(path)
    location = expected.model.backbone.get('feature_location', 'block')
    options = {} if location == 'block' else dict(feature_location=location)
    config = plan_swap(read(library_parent(path)), arch, options=options).config
    assert shapes(config) == shapes(expected)
    assert config.model.backbone.get('init_cfg') == expected.model.backbone.get('init_cfg')


def shapes(config):
    with DefaultScope.overwrite_default_scope(config.default_scope), torch.device('meta'):
        model = MODELS.build(copy.deepcopy(config.model))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# Options ------------------------------------------------------------------------------------------


def test_options_of_the_backbone_stand_over_what_is_inherited():
    config = read(f'{FASTER}r50_fpn_1x_coco.py')
    backbone = swap_backbone(config, 'Ti', frozen_stages=-1, position='relative').model.backbone
    assert backbone.arch == 'tiny' and backbone.position == 'relative'
    assert backbone.frozen_stages == -1 and backbone.norm_eval
    assert backbone.init_cfg.checkpoint == 'checkpoints/contnet-ti_in1k.pth'


def test_weights_are_those_that_the_caller_names():
    config = read('mmpretrain::resnet/resnet50_8xb32_in1k.py')
    assert 'init_cfg' not in swap_backbone(config).model.backbone
    named = swap_backbone(config, checkpoint='mine.pth').model.backbone.init_cfg
    assert named == dict(type='Pretrained', checkpoint='mine.pth')


def test_an_arch_of_ones_own_asks_for_its_weights():
    arch = dict(
        base_channels=32,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 4, 8),
        feedforward_channels=(64, 128, 256, 256),
        window_sizes=((7, 14), (7, 14), (7, 14), (7, 7)),
        drop_rates=(0, 0, 0, 0),
        last_drop_rate=0,
    )
    swap = plan_swap(read(f'{FASTER}r50_fpn_1x_coco.py'), arch)
    assert swap.config.model.neck.in_channels == [64, 128, 256, 512]
    assert 'init_cfg' not in swap.config.model.backbone
    assert any('checkpoint' in line for line in swap.warnings)


@pytest.mark.parametrize('option', ['depth', 'arch', 'init_cfg'])
def test_an_unknown_option_is_named(option):
    with pytest.raises(TypeError, match=f"'{option}' is no option of the backbone"):
        plan_swap(read(f'{FASTER}r50_fpn_1x_coco.py'), options={option: 1})


def test_an_unknown_arch_is_named():
    with pytest.raises(ValueError, match='huge'):
        swap_backbone(read(f'{FASTER}r50_fpn_1x_coco.py'), 'huge')


# Refusals -----------------------------------------------------------------------------------------

REFUSED = {
    'mmdet::detectors/detectors_cascade-rcnn_r50_1x_coco.py': 'RFP runs copies of the backbone',
    'mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py': 'three branches',
    'mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py': 'strides 4 and 4',
    'mmseg::setr/setr_vit-l_naive_8xb1-80k_cityscapes-768x768.py': 'strides 16, 16, 16 and 16',
    'mmseg::cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py': 'strides 2, 4 and 8',
    'mmseg::mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py': 'strides 2, 4',
    'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py': 'it is for self-supervised',
    'mmdet::sort/sort_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py': 'tracking',
    'mmpretrain::conformer/conformer-tiny-p16_8xb128_in1k.py': r'gives \(\(\[2, 256\]',
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_done_right_is_refused_with_the_reason(name):
    with pytest.raises(SwapError, match=REFUSED[name]):
        plan_swap(read(name))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(model=None), 'has no model'),
        (dict(model=dict(type='FasterRCNN', neck=dict(type='FPN'))), 'FasterRCNN has no backbone'),
        (
            dict(model=dict(neck=dict(in_channels=[256, 512, 1024, 2049]))),
            r'model.neck.in_channels = \[256, 512, 1024, 2049\] is not what comes before it',
        ),
        (dict(model=dict(backbone=dict(depth=51))), 'building ResNet: KeyError'),
        (dict(model=dict(data_preprocessor=dict(rgb_to_bgr=True))), 'rgb_to_bgr'),
    ],
)
def test_a_config_that_does_not_fit_together_is_refused(change, words):
    config = copy.deepcopy(read(f'{FASTER}r50_fpn_1x_coco.py'))
    if set(change['model'] or ()) <= {'neck', 'backbone', 'data_preprocessor'} and change['model']:
        config.merge_from_dict(change)
    else:
        config.model = change['model']
    with pytest.raises(SwapError, match=words):
        plan_swap(config)


def test_a_swapped_config_is_not_swapped_again():
    with pytest.raises(SwapError, match='ConTNet already'):
        plan_swap(swapped(f'{FASTER}r50_fpn_1x_coco.py').config)
