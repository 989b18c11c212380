"""Layer-wise decay of the learning rate: depths, rates, and who refuses what."""

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from contnet_mm import ConTNet
from tests.conftest import THIN_ARCH

NUM_BLOCKS = sum(THIN_ARCH['depths'])


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(backbone.out_channels[-1] if backbone else 3, 2, 1)


def groups_by_name(model, **paramwise):
    cfg = dict(
        type='OptimWrapper',
        constructor='contnet_mm.LearningRateDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
        paramwise_cfg=paramwise,
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    return {names[id(group['params'][0])]: group for group in groups}


def test_depths_rise_from_the_stem_through_the_blocks():
    net = ConTNet(dict(THIN_ARCH))
    depths = [net.get_layer_depth(name)[0] for name, _ in net.named_parameters()]
    assert depths == sorted(depths)
    assert set(depths) == set(range(NUM_BLOCKS + 1))
    assert net.get_layer_depth('stem.conv.weight') == (0, NUM_BLOCKS + 2)
    name = 'backbone.stages.3.1.conv.weight'
    assert net.get_layer_depth(name, prefix='backbone.') == (NUM_BLOCKS, NUM_BLOCKS + 2)
    assert net.get_layer_depth('head.fc.weight', prefix='backbone.')[0] == NUM_BLOCKS + 1


def test_depths_count_only_the_blocks_that_are_built():
    assert ConTNet(dict(THIN_ARCH), out_indices=(0,)).get_layer_depth('stem.conv.weight') == (0, 3)


def test_a_foreign_parameter_has_no_depth():
    with pytest.raises(ValueError, match="'fc.weight'"):
        ConTNet(dict(THIN_ARCH)).get_layer_depth('fc.weight')


def test_rates_fall_by_the_factor_from_the_head_to_the_stem():
    model = Detector(ConTNet(dict(THIN_ARCH)))
    groups = groups_by_name(model, layer_decay_rate=0.5)
    assert groups.keys() == {name for name, _ in model.named_parameters()}
    assert groups['head.weight']['lr'] == 1.0
    assert groups['backbone.stages.3.1.conv.weight']['lr'] == 0.5
    assert groups['backbone.stem.conv.weight']['lr'] == 0.5 ** (NUM_BLOCKS + 1)


def test_the_log_tells_the_rate_of_every_layer(monkeypatch):
    lines = []
    monkeypatch.setattr(
        'contnet_mm.engine.layer_decay.print_log',
        lambda message, logger: lines.append((message, logger)),
    )
    model = Detector(ConTNet(dict(THIN_ARCH)))
    groups_by_name(model, layer_decay_rate=0.5, custom_keys={'stages.3.1.conv.': dict(lr_mult=2.0)})
    assert len(lines) == NUM_BLOCKS + 2 and {logger for _, logger in lines} == {'current'}
    stem = [name for name, _ in model.named_parameters() if 'stem' in name]
    factor = f'{0.5 ** (NUM_BLOCKS + 1):.4g}'
    start = 'layer-wise decay -- layer'
    assert lines[0][0] == f'{start} 0: {len(stem)} parameters at lr {factor}, factor {factor}'
    assert lines[-2][0].endswith(' parameters at lr 0.5 to 1, factor 0.5')
    assert lines[-1][0] == f'{start} {NUM_BLOCKS + 1}: 2 parameters at lr 1, factor 1'


def test_other_rules_of_mmengine_hold_beside_the_decay():
    model = Detector(ConTNet(dict(THIN_ARCH), frozen_stages=0))
    groups = groups_by_name(
        model,
        layer_decay_rate=0.5,
        norm_decay_mult=0.0,
        custom_keys={'position': dict(decay_mult=0.0), 'head': dict(lr_mult=2.0)},
    )
    assert 'backbone.stem.conv.weight' not in groups  # frozen
    assert groups['head.weight']['lr'] == 2.0
    block = 'backbone.stages.3.1.'
    assert groups[block + 'norm.weight']['weight_decay'] == 0.0
    assert groups[block + 'encoders.0.position.rows']['weight_decay'] == 0.0
    assert groups[block + 'encoders.0.attn.qkv.weight']['weight_decay'] == 0.1
    assert groups[block + 'encoders.0.attn.qkv.weight']['lr'] == 0.5


@pytest.mark.parametrize('rate', [None, 0, -0.5, 1.5, 'high', True])
def test_a_rate_out_of_range_is_named(rate):
    model = Detector(ConTNet(dict(THIN_ARCH), out_indices=(0,)))
    with pytest.raises(ValueError, match=f'layer_decay_rate.*{rate}'):
        groups_by_name(model, layer_decay_rate=rate)


def test_a_backbone_without_depths_is_refused():
    with pytest.raises(TypeError, match='get_layer_depth.*Detector with NoneType'):
        groups_by_name(Detector(None), layer_decay_rate=0.5)


def test_mmpretrain_gives_a_classifier_the_same_rates():
    pytest.importorskip('mmpretrain')
    from mmpretrain.models import ImageClassifier
    from mmpretrain.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    model = ImageClassifier(
        backbone=dict(type='contnet_mm.ConTNet', arch=dict(THIN_ARCH), out_indices=(3,)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=2, in_channels=128),
    )
    ours = groups_by_name(model, layer_decay_rate=0.5)
    cfg = dict(
        type='OptimWrapper',
        constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    for theirs in build_optim_wrapper(model, cfg).optimizer.param_groups:
        assert theirs['lr'] == pytest.approx(ours[theirs['param_name']]['lr'])
