"""The arguments of the backbone: what each one does, and what is refused."""

import copy
import warnings

import pytest
import torch
from torch import nn

from contnet_mm import ConTNet
from tests.conftest import THIN_ARCH
from tests.helpers import POSITIONS, loss_of

FLAGS = ('pre_norm', 'qkv_bias', 'avg_down', 'deep_stem', 'norm_eval', 'with_cp')


@pytest.mark.parametrize('position', POSITIONS)
def test_checkpointing_changes_no_value_in_training_with_dropout(thin_arch, position):
    arch = dict(thin_arch, drop_rates=(0.0, 0.0, 0.2, 0.2), last_drop_rate=0.2)
    plain, saving = (
        ConTNet(arch, position=position, with_cp=with_cp).train() for with_cp in (False, True)
    )
    saving.load_state_dict(plain.state_dict())
    x, results = torch.randn(2, 3, 50, 70), []
    for net in (plain, saving):
        torch.manual_seed(1)
        maps = net(x)
        loss_of(maps).backward()
        results.append([*maps, *net.buffers(), *(p.grad for p in net.parameters())])
    # Gradients are summed in an order of the threads' choosing.
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*results, strict=True))


def test_checkpointing_recomputes_the_encoders_even_behind_frozen_parts(thin_arch):
    norm_cfg = dict(type='BN', requires_grad=False)
    net = ConTNet(thin_arch, with_cp=True, frozen_stages=0, norm_cfg=norm_cfg)
    net.load_state_dict(net.state_dict())
    calls = []
    net.train().stages[0][0].encoders[0].register_forward_hook(lambda *args: calls.append(1))
    loss_of(net(torch.randn(2, 3, 32, 32))).backward()
    assert len(calls) == 2


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_parts_keep_their_weights_and_statistics(thin_arch, frozen_stages):
    net = ConTNet(thin_arch, frozen_stages=frozen_stages, deep_stem=True)
    net.load_state_dict(net.state_dict())
    assert net.train() is net and net.eval() is net
    before, loss = copy.deepcopy(net.state_dict()), loss_of(net.train()(torch.randn(2, 3, 40, 50)))
    learning = [p for p in net.parameters() if p.requires_grad]
    assert loss.requires_grad == bool(learning) == (frozen_stages < 4)
    if learning:
        loss.backward()
        torch.optim.SGD(learning, lr=1).step()
    frozen = [f'stages.{i}.' for i in range(frozen_stages)] + ['stem.'] * (frozen_stages >= 0)
    for name, value in net.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed != name.startswith(tuple(frozen)), name


def test_norm_eval_keeps_the_running_statistics(thin_arch):
    net = ConTNet(thin_arch, norm_eval=True)
    net.load_state_dict(net.state_dict())
    net.train()
    before = {k: v.clone() for k, v in net.named_buffers()}
    loss_of(net(torch.randn(2, 3, 40, 40))).backward()
    assert all(torch.equal(v, before[k]) for k, v in net.named_buffers())
    assert net.stages[0][0].norm.weight.grad is not None


@pytest.mark.parametrize(
    'frozen',
    [
        dict(frozen_stages=0),
        dict(norm_eval=True),
        dict(norm_cfg=dict(type='BN', requires_grad=False)),
    ],
)
def test_training_frozen_parts_without_weights_warns(thin_arch, frozen):
    net = ConTNet(thin_arch, **frozen)
    with pytest.warns(UserWarning, match='no weights were loaded'):
        net.train()
    net.load_state_dict(ConTNet(thin_arch).state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        net.train()
        ConTNet(thin_arch).train()  # from scratch, with nothing frozen


@pytest.mark.parametrize(
    'norm_cfg, kind',
    [
        (dict(type='BN', momentum=0.3), nn.BatchNorm2d),
        (dict(type='SyncBN', requires_grad=False), nn.SyncBatchNorm),
        (dict(type='GN', num_groups=2), nn.GroupNorm),
        (dict(type=nn.BatchNorm2d, eps=1e-3), nn.BatchNorm2d),
    ],
)
def test_norm_cfg_chooses_the_norm_and_can_freeze_its_parameters(thin_arch, norm_cfg, kind):
    import mmcv.cnn  # noqa: F401 (puts GN into the registry)

    net = ConTNet(thin_arch, norm_cfg=norm_cfg, deep_stem=True)
    norms = [net.stem.norm1] + [block.norm for stage in net.stages for block in stage]
    learns = norm_cfg.pop('requires_grad', True)
    del norm_cfg['type']
    for norm in norms:
        assert type(norm) is kind and norm.weight.requires_grad == learns
        assert all(getattr(norm, name) == value for name, value in norm_cfg.items())
    assert net.stages[0][0].encoders[0].norm1.weight.requires_grad


def test_strides_and_dilations_mean_what_they_mean_in_a_resnet(thin_arch):
    net = ConTNet(thin_arch, strides=(1, 2, 1, 1), dilations=(2, 1, 3, 4))
    assert net.out_strides == (4, 8, 8, 8)
    for stage, dilation in zip(net.stages, (2, 1, 3, 4), strict=True):
        for conv in [block.conv for block in stage if block.conv.kernel_size == (3, 3)]:
            assert conv.dilation == conv.padding == (dilation, dilation)


@pytest.mark.parametrize('in_channels', [1, 5])
def test_every_channel_of_an_image_counts(thin_arch, in_channels):
    net = ConTNet(thin_arch, in_channels=in_channels).eval()
    x = torch.randn(1, in_channels, 32, 32)
    with torch.inference_mode():
        maps = net(x)
        for channel in range(in_channels):
            other = x.clone()
            other[:, channel] += 1
            assert not any(torch.equal(a, b) for a, b in zip(maps, net(other), strict=True))


@pytest.mark.parametrize(
    'shape', [(3, 64, 64), (1, 4, 64, 64), (1, 3, 31, 64), (1, 3, 64, 31)], ids=str
)
def test_images_of_a_wrong_shape_are_refused(thin_arch, shape):
    with pytest.raises(ValueError, match=str(shape[-1])):
        ConTNet(thin_arch)(torch.zeros(shape))


@pytest.mark.parametrize(
    'kwargs, error, words',
    [
        (dict(arch='large'), ValueError, 'large.*medium'),
        (dict(arch=dict(depths=(1, 1, 1, 1))), ValueError, 'missing.*num_heads'),
        (dict(arch=dict(THIN_ARCH, depth=3)), ValueError, 'unknown.*depth'),
        (dict(arch=dict(THIN_ARCH, depths=(1, 1, 1))), ValueError, '4 entries.*3'),
        (dict(arch=dict(THIN_ARCH, depths=(1, 1, 0, 1))), ValueError, 'depths.*0'),
        (dict(arch=dict(THIN_ARCH, num_heads=(3, 1, 1, 1))), ValueError, 'num_heads 3.*8'),
        (dict(arch=dict(THIN_ARCH, base_channels=7)), ValueError, 'even.*7'),
        (dict(arch=dict(THIN_ARCH, window_sizes=((7, 10),) * 4)), ValueError, r'\(7, 10\)'),
        (dict(arch=dict(THIN_ARCH, drop_rates=(0, 0, 1, 0))), ValueError, 'below 1, got 1'),
        (dict(arch=dict(THIN_ARCH, last_drop_rate='0')), TypeError, "'0'"),
        (dict(in_channels=0), ValueError, 'in_channels.*0'),
        (dict(strides=(2, 2, 2, 2)), ValueError, 'start with 1'),
        (dict(dilations=(1, 1, 0, 1)), ValueError, 'dilations.*0'),
        (dict(out_indices=()), ValueError, 'out_indices'),
        (dict(out_indices=(4,)), ValueError, 'out_indices.*4'),
        (dict(out_indices=(1, 0)), ValueError, 'increasing'),
        (dict(out_indices=3), TypeError, 'out_indices'),
        (dict(position='rotary'), ValueError, 'rotary'),
        (dict(feature_location='stage'), ValueError, "'block' or 'encoder', got 'stage'"),
        *[({flag: 1}, TypeError, f'{flag} must be True or False, got int: 1') for flag in FLAGS],
        (dict(frozen_stages=5), ValueError, 'frozen_stages.*5'),
        (dict(norm_cfg=dict(type='NoSuchNorm')), ValueError, 'NoSuchNorm'),
        (dict(norm_cfg=dict(type=None)), TypeError, 'norm_cfg.*None'),
        (dict(norm_cfg=dict(type='BN', requires_grad='no')), TypeError, "requires_grad.*'no'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name_and_value(kwargs, error, words):
    with pytest.raises(error, match=words):
        ConTNet(**{'arch': THIN_ARCH, **kwargs})


def test_initialisation_is_the_official_one():
    net = ConTNet('tiny', position='relative')
    conv = net.stages[1][0].conv
    assert conv.weight.std().item() == pytest.approx((2 / (192 * 9)) ** 0.5, rel=0.05)
    encoder = net.stages[2][0].encoders[1]
    assert encoder.ffn.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert encoder.attn.position.table.std().item() == pytest.approx(0.02, rel=0.05)
    assert not encoder.attn.qkv.bias.any() and (encoder.norm1.weight == 1).all()
    absolute = ConTNet('tiny').stages[0][0].encoders[0].position
    assert not absolute.rows.any() and not absolute.columns.any()


def test_other_init_cfgs_work_as_in_mmengine(thin_arch):
    net = ConTNet(thin_arch, init_cfg=dict(type='Constant', layer='Conv2d', val=0.5))
    net.init_weights()
    assert (net.stem.conv.weight == 0.5).all()
