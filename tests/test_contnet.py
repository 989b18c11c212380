"""The backbone: sizes, values, gradients, freezing, options, errors."""

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.utils import digit_version
from torch import nn

from contnet_mm import ConTNet
from tests.conftest import THIN_ARCH
from tests.reference import reference_maps

SIZES = st.integers(32, 150)
ALL_OUT_INDICES = [(0,), (1,), (2,), (3,), (0, 2), (1, 2), (0, 1, 2, 3)]


def randomize(net):
    """Give every parameter and running statistic a value that matters."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def relative_difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(
    'arch, alias, parameters',
    [
        ('tiny', 'Ti', 5888992),
        ('small', 'S', 10103400),
        ('medium', 'M', 19536936),
        ('base', 'B', 36043112),
    ],
)
def test_named_archs_have_the_official_parameter_count(arch, alias, parameters):
    net = ConTNet(arch)
    classifier = (net.out_channels[-1] + 1) * 1000
    assert sum(p.numel() for p in net.parameters()) + classifier == parameters
    assert {k: v.shape for k, v in ConTNet(alias).state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }


def test_the_medium_maps_have_the_channels_of_the_design():
    assert ConTNet().out_channels == (64, 128, 256, 1024)


@settings(deadline=None, max_examples=30)
@given(
    height=SIZES,
    width=SIZES,
    position=st.sampled_from(['absolute', 'relative']),
    pre_norm=st.booleans(),
    avg_down=st.booleans(),
    deep_stem=st.booleans(),
    strides=st.sampled_from([(1, 2, 2, 2), (1, 2, 2, 1), (1, 2, 1, 1)]),
)
def test_maps_have_the_sizes_of_a_resnet(
    height, width, position, pre_norm, avg_down, deep_stem, strides
):
    net = ConTNet(
        THIN_ARCH,
        position=position,
        pre_norm=pre_norm,
        avg_down=avg_down,
        deep_stem=deep_stem,
        strides=strides,
    ).eval()
    with torch.inference_mode():
        maps = net(torch.randn(1, 3, height, width))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(net.out_channels, net.out_strides, strict=True)
    ]
    assert all(x.isfinite().all() for x in maps)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


@pytest.fixture(scope='module')
def mmdet_resnet():
    from mmdet.models import ResNet

    net = ResNet(18, base_channels=4)
    net.eval()
    return net


@settings(deadline=None, max_examples=15)
@given(height=SIZES, width=SIZES)
def test_map_sizes_equal_those_of_the_libraries_own_resnet(mmdet_resnet, height, width):
    net = ConTNet(THIN_ARCH).eval()
    x = torch.randn(1, 3, height, width)
    with torch.inference_mode():
        assert [m.shape[2:] for m in net(x)] == [m.shape[2:] for m in mmdet_resnet(x)]


@settings(deadline=None, max_examples=12)
@given(
    height=st.integers(32, 100),
    width=st.integers(32, 100),
    position=st.sampled_from(['absolute', 'relative']),
    pre_norm=st.booleans(),
    avg_down=st.booleans(),
    deep_stem=st.booleans(),
    layout=st.sampled_from(
        [((1, 2, 2, 2), (1, 1, 1, 1)), ((1, 2, 1, 1), (1, 1, 2, 4)), ((1, 1, 2, 1), (1, 2, 1, 2))]
    ),
)
def test_maps_equal_a_plain_loop_over_the_real_tokens_of_each_window(
    height, width, position, pre_norm, avg_down, deep_stem, layout
):
    torch.manual_seed(height * width)
    strides, dilations = layout
    arch = dict(THIN_ARCH, window_sizes=((3, 6), (6, 3), (3, 6), (4, 4)))
    net = ConTNet(
        arch,
        position=position,
        pre_norm=pre_norm,
        avg_down=avg_down,
        deep_stem=deep_stem,
        strides=strides,
        dilations=dilations,
    )
    net = randomize(net).double().eval()
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        for ours, plain in zip(net(x), reference_maps(net, x), strict=True):
            assert relative_difference(ours, plain) <= 1e-9


@pytest.mark.parametrize('position', ['absolute', 'relative'])
@pytest.mark.parametrize('size', [(61, 83), (224, 32)])
def test_maps_equal_the_plain_loop_with_the_windows_of_the_paper(thin_arch, position, size):
    arch = dict(thin_arch, depths=(1, 1, 1, 1))
    net = randomize(ConTNet(arch, position=position)).double().eval()
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        for ours, plain in zip(net(x), reference_maps(net, x), strict=True):
            assert relative_difference(ours, plain) <= 1e-9


@settings(deadline=None, max_examples=15)
@given(height=SIZES, width=SIZES, position=st.sampled_from(['absolute', 'relative']))
def test_the_maps_of_an_image_do_not_depend_on_its_neighbours(height, width, position):
    net = randomize(ConTNet(THIN_ARCH, position=position)).eval()
    images = torch.randn(3, 3, height, width)
    changed = images.clone()
    changed[[0, 2]] = 100 * torch.randn(2, 3, height, width)
    with torch.inference_mode():
        for a, b, alone in zip(net(images), net(changed), net(images[1:2]), strict=True):
            assert torch.equal(a[1], b[1])
            assert relative_difference(a[1], alone[0]) <= 1e-5


@pytest.mark.parametrize('position', ['absolute', 'relative'])
@pytest.mark.parametrize('out_indices', ALL_OUT_INDICES)
@pytest.mark.parametrize('size', [(64, 64), (45, 99)])
def test_every_parameter_gets_a_finite_gradient(thin_arch, out_indices, position, size):
    net = ConTNet(thin_arch, out_indices=out_indices, position=position).train()
    assert len(net.out_channels) == len(net.out_strides) == len(out_indices)
    maps = net(torch.randn(2, 3, *size))
    assert [x.shape[1] for x in maps] == list(net.out_channels)
    sum(x.square().mean() for x in maps).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize('out_indices, stages', [((0,), 1), ((0, 2), 3), ((1, 3), 4)])
def test_what_no_output_needs_is_not_built(thin_arch, out_indices, stages):
    net = ConTNet(thin_arch, out_indices=out_indices)
    assert len(net.stages) == stages
    last = net.stages[-1][-1]
    assert (last.conv is None) == (last.downsample is None) == (out_indices[-1] < 3)


@pytest.mark.parametrize(
    'dtype',
    [
        torch.bfloat16,
        pytest.param(
            torch.float16,
            marks=pytest.mark.skipif(
                digit_version(torch.__version__) < digit_version('2.4'),
                reason='the CPU autocast of this torch knows bfloat16 only',
            ),
        ),
    ],
)
@pytest.mark.parametrize('position', ['absolute', 'relative'])
@pytest.mark.parametrize('size', [(64, 64), (37, 75)])
def test_autocast_stays_finite_forward_and_backward(thin_arch, dtype, position, size):
    net = ConTNet(thin_arch, position=position).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        plain = net(x)
        with torch.autocast('cpu', dtype=dtype):
            close = net(x)
    for low, full in zip(close, plain, strict=True):
        assert relative_difference(low.float(), full) <= 0.1
    with torch.autocast('cpu', dtype=dtype):
        maps = net.train()(x)
        loss = sum(m.float().square().mean() for m in maps)
    loss.backward()
    assert all(m.isfinite().all() for m in maps)
    assert all(p.grad.isfinite().all() for p in net.parameters())


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


def test_dropout_sits_in_each_of_its_places(thin_arch, monkeypatch):
    rates = []
    dropout, attention = nn.functional.dropout, nn.functional.scaled_dot_product_attention

    def spy_dropout(x, p, training):
        rates.append(p)
        return dropout(x, p, training)

    def spy_attention(*args, dropout_p, **kwargs):
        rates.append(dropout_p)
        return attention(*args, dropout_p=dropout_p, **kwargs)

    monkeypatch.setattr(nn.functional, 'dropout', spy_dropout)
    monkeypatch.setattr(nn.functional, 'scaled_dot_product_attention', spy_attention)
    arch = dict(thin_arch, depths=(1, 1, 1, 1), drop_rates=(0.25, 0, 0, 0.5), last_drop_rate=0.125)
    ConTNet(arch).train()(torch.randn(2, 3, 224, 224))
    # Two encoders in a stage; in each attention weights, projection, GELU and second linear.
    assert rates.count(0.25) == rates.count(0.5) == 8
    assert rates[-1] == 0.125 and rates.count(0.125) == 1


def test_an_empty_batch_gives_empty_maps(thin_arch):
    for size in [(224, 224), (50, 70)]:
        maps = ConTNet(thin_arch).eval()(torch.zeros(0, 3, *size))
        assert [m.shape[0] for m in maps] == [0, 0, 0, 0]


def test_images_become_channels_last_before_the_stem(thin_arch):
    seen = []
    net = ConTNet(thin_arch).eval()
    net.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(torch.randn(2, 3, 40, 40))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_dropout_acts_in_training_only(thin_arch):
    net = ConTNet(dict(thin_arch, drop_rates=(0.5, 0.0, 0.0, 0.0), last_drop_rate=0.5))
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        first, again = net.train()(x), net(x)
        assert not torch.equal(first[0], again[0])
        assert (first[3] == 0).float().mean() > 0.3  # on the sum, at the very end
        assert all(torch.equal(a, b) for a, b in zip(net.eval()(x), net(x), strict=True))


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


def test_images_may_have_any_number_of_channels(thin_arch):
    assert len(ConTNet(thin_arch, in_channels=5).eval()(torch.randn(1, 5, 32, 32))) == 4


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


@pytest.mark.parametrize('size', [(64, 64), (45, 99)])
@pytest.mark.parametrize('position', ['absolute', 'relative'])
def test_compiling_and_exporting_follow_the_whole_graph(thin_arch, size, position):
    net = ConTNet(thin_arch, position=position).eval()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        plain = net(x)
        compiled = torch.compile(net, backend='eager', fullgraph=True, dynamic=False)(x)
        exported = (
            torch.export.export(net, (x,)).module()(x) if hasattr(torch.export, 'export') else plain
        )
    for maps in (compiled, exported):
        assert all(torch.equal(a, b) for a, b in zip(maps, plain, strict=True))


def test_the_backbone_can_be_pickled_and_copied(thin_arch):
    net = ConTNet(thin_arch).eval()
    x = torch.randn(1, 3, 33, 40)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(torch.equal(a, b) for a, b in zip(net(x), twin(x), strict=True))
