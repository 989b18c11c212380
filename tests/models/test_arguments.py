"""The arguments of the backbone: what each one does, and what is refused."""

import copy
import warnings

import pytest
import torch
from torch import nn

from contnet_mm import ConTNet
from tests.conftest import THIN_ARCH
from tests.helpers import assert_close, build, gradients


@pytest.mark.parametrize('position', ['absolute', 'relative'])
def test_checkpointing_changes_no_value(thin_arch, position):
    arch = dict(thin_arch, drop_rates=(0.0, 0.0, 0.2, 0.2), last_drop_rate=0.2)
    plain = ConTNet(arch, position=position).train()
    saving = ConTNet(arch, position=position, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 50, 70)
    results = []
    for net in (plain, saving):
        torch.manual_seed(1)
        maps = net(x)
        sum(m.square().mean() for m in maps).backward()
        results.append((maps, [p.grad for p in net.parameters()], [*net.buffers()]))
    for a, b in zip(*results, strict=True):
        # Gradients are summed in an order of the threads' choosing.
        assert all(torch.allclose(x, y, rtol=1e-4, atol=1e-7) for x, y in zip(a, b, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(results[0][0], results[1][0], strict=True))


@pytest.mark.parametrize('position', ['absolute', 'relative'])
def test_checkpointing_changes_no_value_in_evaluation_either(thin_arch, position):
    nets = [build(thin_arch, position=position, with_cp=with_cp) for with_cp in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(2, 3, 50, 70)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            plain, saving = (net(x) for net in nets)
        assert all(torch.equal(a, b) for a, b in zip(plain, saving, strict=True))
    assert_close(gradients(nets[1], x), gradients(nets[0], x), 1e-4)


def test_checkpointing_recomputes_the_encoders(thin_arch, monkeypatch):
    net = ConTNet(thin_arch, with_cp=True).train()
    calls = []
    net.stages[0][0].encoders[0].register_forward_hook(lambda *args: calls.append(1))
    sum(m.sum() for m in net(torch.randn(2, 3, 32, 32))).backward()
    assert len(calls) == 2


def test_checkpointing_works_below_frozen_parts(thin_arch):
    norm_cfg = dict(type='BN', requires_grad=False)
    net = ConTNet(thin_arch, with_cp=True, frozen_stages=0, norm_cfg=norm_cfg)
    net.load_state_dict(net.state_dict())
    calls = []
    net.train().stages[0][0].encoders[0].register_forward_hook(lambda *args: calls.append(1))
    sum(m.sum() for m in net(torch.randn(2, 3, 32, 32))).backward()
    assert len(calls) == 2


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_parts_keep_their_weights_and_statistics(thin_arch, frozen_stages):
    net = ConTNet(thin_arch, frozen_stages=frozen_stages, deep_stem=True)
    net.load_state_dict(net.state_dict())
    assert net.train() is net and net.eval() is net
    net.train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad] or [nn.Parameter(torch.zeros(1))], lr=1
    )
    loss = sum(m.square().mean() for m in net(torch.randn(2, 3, 40, 50)))
    if loss.requires_grad:
        loss.backward()
    optimizer.step()
    frozen = [f'stages.{i}.' for i in range(frozen_stages)] + ['stem.'] * (frozen_stages >= 0)
    for name, value in net.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed != name.startswith(tuple(frozen)), name


def test_what_is_frozen_stays_so_after_weights_were_loaded_from_a_file(thin_arch, tmp_path):
    file, weights = tmp_path / 'a.pth', build(thin_arch).state_dict()
    torch.save(weights, file)
    init_cfg = dict(type='Pretrained', checkpoint=str(file))
    net = ConTNet(thin_arch, frozen_stages=2, norm_eval=True, init_cfg=init_cfg)
    net.init_weights()
    for mode in (True, False, True):
        net.train(mode)
        assert net.training is mode and net.stages[2].training is mode
        frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
        assert frozen == {n for n in weights if n.startswith(('stem', 'stages.0', 'stages.1'))} - {
            name for name, _ in net.named_buffers()
        }
        assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))
        assert not any(m.training for part in (net.stem, *net.stages[:2]) for m in part.modules())
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_norm_eval_keeps_the_running_statistics(thin_arch):
    net = ConTNet(thin_arch, norm_eval=True)
    net.load_state_dict(net.state_dict())
    net.train()
    before = {k: v.clone() for k, v in net.named_buffers()}
    sum(m.sum() for m in net(torch.randn(2, 3, 40, 40))).backward()
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


def test_training_everything_from_scratch_does_not_warn(thin_arch):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ConTNet(thin_arch).train()


@pytest.mark.parametrize(
    'norm_cfg, kind',
    [
        (dict(type='BN', momentum=0.3), nn.BatchNorm2d),
        (dict(type='SyncBN'), nn.SyncBatchNorm),
        (dict(type='GN', num_groups=2), nn.GroupNorm),
        (dict(type=nn.BatchNorm2d, eps=1e-3), nn.BatchNorm2d),
    ],
)
def test_norm_cfg_chooses_the_norm(thin_arch, norm_cfg, kind):
    import mmcv.cnn  # noqa: F401 (puts GN into the registry)

    net = ConTNet(thin_arch, norm_cfg=norm_cfg, deep_stem=True)
    norms = [net.stem.norm1] + [block.norm for stage in net.stages for block in stage]
    assert all(type(norm) is kind for norm in norms)
    for name, value in norm_cfg.items():
        assert name == 'type' or getattr(norms[0], name) == value


def test_norm_cfg_can_freeze_the_affine_parameters(thin_arch):
    net = ConTNet(thin_arch, norm_cfg=dict(type='BN', requires_grad=False))
    assert not any(p.requires_grad for p in net.stages[0][0].norm.parameters())
    assert net.stages[0][0].encoders[0].norm1.weight.requires_grad


@pytest.mark.parametrize(
    'strides, dilations, out_strides',
    [
        ((1, 2, 2, 2), (2, 1, 1, 1), (4, 8, 16, 32)),
        ((1, 2, 2, 1), (1, 1, 1, 2), (4, 8, 16, 16)),
        ((1, 2, 1, 1), (1, 1, 2, 4), (4, 8, 8, 8)),
    ],
)
@pytest.mark.parametrize('avg_down', [False, True])
def test_strides_and_dilations_mean_what_they_mean_in_a_resnet(
    thin_arch, strides, dilations, out_strides, avg_down
):
    net = ConTNet(thin_arch, strides=strides, dilations=dilations, avg_down=avg_down).eval()
    assert net.out_strides == out_strides
    with torch.inference_mode():
        maps = net(torch.randn(1, 3, 65, 99))
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-65 // s), -(-99 // s)) for s in out_strides]
    for stage, dilation in zip(net.stages, dilations, strict=True):
        for block in stage:
            if block.conv.kernel_size == (3, 3):
                assert block.conv.dilation == block.conv.padding == (dilation, dilation)


@pytest.mark.parametrize('deep_stem', [False, True])
@pytest.mark.parametrize('in_channels', [1, 5])
def test_every_channel_of_an_image_of_any_number_of_them_counts(thin_arch, in_channels, deep_stem):
    net = ConTNet(thin_arch, in_channels=in_channels, deep_stem=deep_stem).eval()
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
        (dict(arch=3), TypeError, '3'),
        (dict(arch=dict(depths=(1, 1, 1, 1))), ValueError, 'missing.*num_heads'),
        (dict(arch=dict(THIN_ARCH, depth=3)), ValueError, 'unknown.*depth'),
        (dict(arch=dict(THIN_ARCH, depths=(1, 1, 1))), ValueError, '4 entries.*3'),
        (dict(arch=dict(THIN_ARCH, depths=(1, 1, 0, 1))), ValueError, 'depths.*0'),
        (dict(arch=dict(THIN_ARCH, depths=2)), TypeError, 'depths'),
        (dict(arch=dict(THIN_ARCH, num_heads=(3, 1, 1, 1))), ValueError, 'num_heads 3.*8'),
        (dict(arch=dict(THIN_ARCH, base_channels=7)), ValueError, 'even.*7'),
        (dict(arch=dict(THIN_ARCH, base_channels=8.0)), TypeError, '8.0'),
        (dict(arch=dict(THIN_ARCH, window_sizes=((7, 10),) * 4)), ValueError, r'\(7, 10\)'),
        (dict(arch=dict(THIN_ARCH, drop_rates=(0, 0, 1, 0))), ValueError, 'below 1, got 1'),
        (dict(arch=dict(THIN_ARCH, last_drop_rate='0')), TypeError, "'0'"),
        (dict(in_channels=0), ValueError, 'in_channels.*0'),
        (dict(in_channels='3'), TypeError, 'in_channels'),
        (dict(strides=(2, 2, 2, 2)), ValueError, 'start with 1'),
        (dict(strides=(1, 2, 2)), ValueError, '4 entries'),
        (dict(strides=2), TypeError, 'strides'),
        (dict(dilations=(1, 1, 0, 1)), ValueError, 'dilations.*0'),
        (dict(out_indices=()), ValueError, 'out_indices'),
        (dict(out_indices=(4,)), ValueError, 'out_indices.*4'),
        (dict(out_indices=(-1,)), ValueError, 'out_indices.*-1'),
        (dict(out_indices=(1, 0)), ValueError, 'increasing'),
        (dict(out_indices=3), TypeError, 'out_indices'),
        (dict(position='rotary'), ValueError, 'rotary'),
        (dict(pre_norm=1), TypeError, 'pre_norm'),
        (dict(qkv_bias=None), TypeError, 'qkv_bias'),
        (dict(avg_down='yes'), TypeError, 'avg_down'),
        (dict(deep_stem=0), TypeError, 'deep_stem'),
        (dict(norm_eval='no'), TypeError, 'norm_eval'),
        (dict(with_cp=2), TypeError, 'with_cp'),
        (dict(frozen_stages=5), ValueError, 'frozen_stages.*5'),
        (dict(frozen_stages=None), TypeError, 'frozen_stages'),
        (dict(norm_cfg=dict(type='NoSuchNorm')), ValueError, 'NoSuchNorm'),
        (dict(norm_cfg='BN'), TypeError, 'BN'),
        (dict(norm_cfg=dict(type=None)), TypeError, 'norm_cfg.*None'),
        (dict(norm_cfg=dict(type='BN', requires_grad='no')), TypeError, "requires_grad.*'no'"),
        (dict(depth=50), TypeError, 'depth'),
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
