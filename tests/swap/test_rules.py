"""Each rule of the swap by itself: strides, channels, norms, pixels, optimizer and weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from torch import nn

from contnet_mm import ConTNet
from contnet_mm.swap.backbone import inherit_options, match_strides, output_strides
from contnet_mm.swap.consumers import map_channels
from contnet_mm.swap.edit import Swap, SwapError
from contnet_mm.swap.features import Feature, FeatureShapes, measure
from contnet_mm.swap.pixels import MEAN, STD, fix_pixels
from contnet_mm.swap.training import CONSTRUCTOR, fix_optimizer, remove_weights

RGB = {'mean': MEAN, 'std': STD}


class Backbone(nn.Module):
    """Stands for any backbone that is no ResNet."""


def matched(wanted):
    features = [Feature(1, 1, stride) for stride in wanted]
    return match_strides(Swap(Config()), Backbone(), features, {}, pooled=False)


steps = st.tuples(st.just(1), *[st.sampled_from([1, 2])] * 3)


@given(steps)
@settings(deadline=None)
def test_four_maps_of_any_strides_that_contnet_has_are_matched(strides):
    wanted = output_strides(strides, range(4))
    net = ConTNet('tiny', **matched(wanted))
    assert net.out_strides == wanted
    assert [d * s for d, s in zip(net.dilations, wanted, strict=True)] == [4, 8, 16, 32]


@given(st.lists(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), min_size=1, max_size=5))
@settings(deadline=None)
def test_maps_of_other_strides_are_refused_or_matched_exactly(wanted):
    try:
        chosen = matched(wanted)
    except SwapError:
        return
    assert list(ConTNet('tiny', **chosen).out_strides) == wanted


channels = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@given(channels, st.data())
@settings(deadline=None)
def test_channels_are_mapped_one_by_one(old, data):
    new = data.draw(st.permutations(range(10, 10 + len(old))))
    shapes = shapes_of(old, new)
    assert map_channels(list(old), shapes) == new
    assert map_channels(old[-1], shapes) == new[-1]
    indices = data.draw(st.lists(st.integers(-len(old), len(old) - 1), min_size=1))
    assert map_channels(tuple(old[i] for i in indices), shapes, indices) == tuple(
        new[i] for i in indices
    )
    if old != old[::-1]:
        assert map_channels(old[::-1], shapes) == new[::-1]


@pytest.mark.parametrize(
    ('value', 'index'), [(3, None), ([1, 3], None), (1, 1), (1, 7), ([1], [1]), ('x', None)]
)
def test_channels_that_do_not_come_before_are_refused(value, index):
    with pytest.raises(SwapError, match=r'is not what comes before it, maps of \[1, 2\] channels'):
        map_channels(value, shapes_of([1, 2], [3, 4]), index)


def shapes_of(old, new):
    """Return the shapes of maps with these channels, before the swap and after it."""
    return FeatureShapes(*([torch.zeros(1, c, 4, 4) for c in each] for each in (old, new)), 16)


def test_maps_of_another_size_are_refused():
    shapes = FeatureShapes([torch.zeros(1, 2, 8, 8)], [torch.zeros(1, 3, 4, 4)], 64)
    with pytest.raises(SwapError, match=r'\[8\] rows, and with ConTNet they have \[4\]'):
        shapes.check_strides()


def test_vectors_have_neither_rows_nor_stride():
    vector, image = measure([torch.zeros(2, 5), torch.zeros(2, 5, 3, 3)], 96)
    assert vector == (5, 0, 0) and image == (5, 3, 32)


@pytest.mark.parametrize(
    ('norm_cfg', 'from_weights', 'expected'),
    [
        (dict(type='BN', requires_grad=True), True, None),
        (dict(type='BN', requires_grad=False, eps=0), True, dict(type='BN', requires_grad=False)),
        (dict(type='SyncBN', requires_grad=True), True, dict(type='SyncBN')),
        (dict(type='BN', momentum=0.03, eps=1e-3), True, dict(type='BN', momentum=0.03)),
        (dict(type='GN', num_groups=32), False, dict(type='GN', num_groups=32)),
        (dict(type='GN', num_groups=32), True, None),
        (dict(type='LN'), False, None),
        (None, False, None),
    ],
)
def test_norms_are_inherited_where_they_mean_the_same(norm_cfg, from_weights, expected):
    old = Backbone()
    old.norm_cfg = norm_cfg
    swap = Swap(Config())
    taken = inherit_options(swap, old, {}, from_weights)
    assert taken.get('norm_cfg') == expected
    # ConTNet's weights are batch norm's, whose statistics of a few images are no good.
    lost = norm_cfg is not None and norm_cfg['type'] == 'GN' and from_weights
    assert taken.get('norm_eval', False) == lost == bool(swap.warnings)


def test_freezing_that_counts_other_parts_is_left_to_judge():
    old = Backbone()
    old.layer = nn.Linear(1, 1).requires_grad_(False)
    swap = Swap(Config())
    assert inherit_options(swap, old, {}, True) == {}
    assert 'frozen_stages' in swap.warnings[0]


def edited(function, **config):
    swap = Swap(Config(config))
    function(swap)
    return swap.config, swap


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_pixel_statistics_are_set_everywhere(scope):
    caffe = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0])
    flag = 'to_rgb' if scope == 'mmpretrain' else 'bgr_to_rgb'
    config, _ = edited(
        fix_pixels,
        default_scope=scope,
        data_preprocessor={**caffe, flag: False},
        model=dict(data_preprocessor=dict(data_preprocessor=dict(caffe, type='x'))),
        train_pipeline=[
            dict(type='Expand', to_rgb=False, **caffe),
            dict(type='Normalize', to_rgb=False, **caffe),
            dict(type='RandomErasing', fill_color=[123.675, 116.28, 103.53], fill_std=(1, 1, 1)),
            dict(type='Pad', pad_val=dict(img=(114, 114, 114))),
        ],
    )
    assert config.data_preprocessor == {**RGB, flag: True}
    assert config.model.data_preprocessor.data_preprocessor == {**RGB, flag: True, 'type': 'x'}
    assert 'mean' not in config.model.data_preprocessor
    expand, normalize, erasing, pad = config.train_pipeline
    assert expand.mean == MEAN and expand.to_rgb is True
    assert normalize.mean == MEAN and normalize.std == STD and normalize.to_rgb is True
    # Pixels are BGR until the preprocessor.
    assert erasing.fill_color == MEAN[::-1] and erasing.fill_std == tuple(STD[::-1])
    assert pad.pad_val == dict(img=(114, 114, 114))


def test_images_of_one_channel_keep_their_statistics():
    config, swap = edited(fix_pixels, data_preprocessor=dict(mean=[33.46], std=[78.87]))
    assert config.data_preprocessor == dict(mean=[33.46], std=[78.87])
    assert 'stays as it is' in swap.warnings[0]


def test_right_statistics_change_nothing():
    _, swap = edited(fix_pixels, data_preprocessor={**RGB, 'bgr_to_rgb': True})
    assert swap.changes == {}


def optimized(old, **optim_wrapper):
    return edited(
        lambda swap: fix_optimizer(swap, old, ConTNet('tiny')), optim_wrapper=optim_wrapper
    )


def test_layer_decay_of_other_backbones_becomes_ours():
    paramwise = dict(decay_rate=0.7, decay_type='layer_wise', num_layers=6)
    name = 'LearningRateDecayOptimizerConstructor'
    config, swap = optimized(Backbone(), constructor=name, paramwise_cfg=paramwise)
    assert config.optim_wrapper.constructor == CONSTRUCTOR
    assert config.optim_wrapper.paramwise_cfg == dict(
        layer_decay_rate=0.7,
        flat_decay_mult=0.0,
        custom_keys=dict(position=dict(decay_mult=0.0)),
    )
    assert 'another number of layers' in swap.warnings[0]


def test_position_tables_are_treated_as_those_of_the_old_backbone():
    keys = dict(relative_position_bias_table=dict(decay_mult=0.0))
    config, _ = optimized(Backbone(), paramwise_cfg=dict(custom_keys=keys))
    assert config.optim_wrapper.paramwise_cfg.custom_keys.position == dict(decay_mult=0.0)


def test_biases_that_the_old_backbone_had_none_of_learn_as_the_weights():
    plain, with_bias = (nn.Conv2d(1, 1, 1, bias=bias) for bias in (False, True))
    for old, expected in ((plain, {'backbone': {'lr_mult': 1.0}}), (with_bias, None)):
        paramwise = dict(bias_lr_mult=2.0)
        config, _ = optimized(nn.Sequential(old, nn.BatchNorm2d(1)), paramwise_cfg=paramwise)
        assert config.optim_wrapper.paramwise_cfg.get('custom_keys') == expected


def test_rules_for_tables_and_for_biases_stand_side_by_side():
    old = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    keys = dict(pos_embed=dict(decay_mult=0.0))
    config, _ = optimized(old, paramwise_cfg=dict(bias_lr_mult=2.0, custom_keys=keys))
    added = dict(position=dict(decay_mult=0.0), backbone=dict(lr_mult=1.0))
    assert config.optim_wrapper.paramwise_cfg.custom_keys == {**keys, **added}


def test_keys_that_match_nothing_any_more_are_left_to_judge():
    old = nn.ModuleDict({'patch_embed': nn.Linear(1, 1)})
    keys = {'backbone.patch_embed': dict(lr_mult=0.1), 'backbone': dict(lr_mult=0.1)}
    _, swap = optimized(old, paramwise_cfg=dict(custom_keys=keys))
    assert swap.warnings[0].startswith('1 custom_keys') and 'patch_embed' in swap.warnings[0]


def test_weights_of_another_part_stay_and_are_left_to_judge():
    weights = [dict(type='Pretrained', checkpoint='head.pth'), dict(type='Constant')]
    model = dict(
        init_cfg=weights[0], backbone=dict(init_cfg=None), bbox_head=dict(init_cfg=weights)
    )
    config, swap = edited(
        lambda swap: remove_weights(swap, ('model',)), model=model, load_from='all.pth'
    )
    assert config.load_from is None and config.model.init_cfg is None
    assert config.model.bbox_head.init_cfg == weights
    assert 'model.bbox_head still starts from weights' in swap.warnings[0]
