"""The backbone: sizes, values, gradients, dropout, what is built, compiling."""

import copy
import itertools
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.utils import digit_version
from torch import nn

from contnet_mm import ConTNet
from contnet_mm.models import encoder
from contnet_mm.models.window_layout import HAS_CUSTOM_OPS
from tests.conftest import THIN_ARCH
from tests.helpers import loss_of, randomize
from tests.reference import reference_maps

SIZES = st.integers(32, 150)
ALL_OUT_INDICES = [(0,), (1,), (2,), (3,), (0, 2), (1, 2), (0, 1, 2, 3)]


CHOICES = [c for n in range(1, 5) for c in itertools.combinations(range(4), n)]


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
    assert all(x.is_contiguous() for x in maps)


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


@pytest.mark.parametrize('out_indices', CHOICES, ids=str)
def test_every_choice_of_maps_gives_those_of_the_whole_network(thin_arch, out_indices):
    whole = randomize(ConTNet(thin_arch)).eval()
    net = ConTNet(thin_arch, out_indices=out_indices).eval()
    state_dict = whole.state_dict()
    net.load_state_dict({key: state_dict[key] for key in net.state_dict()})
    x = torch.randn(1, 3, 45, 99)
    with torch.inference_mode():
        maps, expected = net(x), [whole(x)[i] for i in out_indices]
    assert type(maps) is tuple
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_images_stay_as_they_were(thin_arch, training, memory_format):
    x = torch.randn(2, 3, 45, 99).contiguous(memory_format=memory_format)
    before, strides = x.clone(), x.stride()
    loss_of(ConTNet(thin_arch).train(training)(x)).backward()
    assert torch.equal(x, before) and x.stride() == strides and x.grad is None


@pytest.mark.parametrize('size', [(64, 64), (45, 99)])
@pytest.mark.parametrize('out_indices', [(0,), (3,)], ids=str)
def test_every_pixel_of_an_image_gets_a_gradient(thin_arch, size, out_indices):
    net = ConTNet(thin_arch, out_indices=out_indices).eval()
    x = torch.randn(1, 3, *size, requires_grad=True)
    loss_of(net(x)).backward()
    assert x.grad.isfinite().all()
    assert (x.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize(
    ('size', 'norm_eval'), [((64, 64), False), ((32, 33), False), ((32, 32), True)], ids=str
)
@pytest.mark.filterwarnings('ignore:.*no weights were loaded')
def test_a_single_image_trains(thin_arch, size, norm_eval):
    net = ConTNet(thin_arch, norm_eval=norm_eval).train()
    loss_of(net(torch.randn(1, 3, *size))).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_the_smallest_image_alone_has_no_statistics_to_train_on(thin_arch):
    """One value per channel in the last stage: batch norm itself refuses, as in any network."""
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        ConTNet(thin_arch).train()(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize('position', ['absolute', 'relative'])
def test_a_network_moved_to_double_precision_and_back_has_its_maps(thin_arch, position):
    net = randomize(ConTNet(thin_arch, position=position)).eval()
    x = torch.randn(1, 3, 45, 99)
    with torch.inference_mode():
        before, high = net(x), net.double()(x.double())
        after = net.float()(x)
    assert all(m.dtype is torch.float64 for m in high)
    for a, b, c in zip(before, after, high, strict=True):
        assert torch.equal(a, b)
        assert 0 < relative_difference(a.double(), c) <= 1e-4


def test_a_custom_arch_is_built_as_it_says():
    sizes = ((2, 4), (3, 3), (4, 8), (5, 10))
    arch = dict(
        base_channels=12,
        depths=(1, 2, 3, 1),
        num_heads=(1, 2, 3, 4),
        feedforward_channels=(5, 6, 7, 8),
        window_sizes=sizes,
        drop_rates=(0.1, 0.2, 0.3, 0.4),
        last_drop_rate=0.5,
    )
    net = ConTNet(arch, position='relative')
    assert net.out_channels == (12, 24, 48, 192)
    assert [len(stage) for stage in net.stages] == [1, 2, 3, 1]
    assert net.stages[-1][-1].out_drop_rate == 0.5
    for i, stage in enumerate(net.stages):
        for part, size in [p for b in stage for p in zip(b.encoders, sizes[i], strict=True)]:
            assert part.attn.qkv.in_features == 12 * 2**i
            assert part.ffn.fc1.out_features == 5 + i
            assert part.attn.position.table.shape == ((2 * size - 1) ** 2, 1 + i)
            assert part.attn.drop_rate == part.ffn.drop_rate == arch['drop_rates'][i]


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


def test_dropout_sits_in_each_of_its_places(thin_arch, monkeypatch):
    rates = []
    dropout, attention = nn.functional.dropout, encoder.window_attention

    def spy_dropout(x, p, training):
        rates.append(p)
        return dropout(x, p, training)

    def spy_attention(*args):
        rates.append(args[-1])
        return attention(*args)

    monkeypatch.setattr(nn.functional, 'dropout', spy_dropout)
    monkeypatch.setattr(encoder, 'window_attention', spy_attention)
    arch = dict(thin_arch, depths=(1, 1, 1, 1), drop_rates=(0.25, 0, 0, 0.5), last_drop_rate=0.125)
    ConTNet(arch).train()(torch.randn(2, 3, 224, 224))
    # Two encoders in a stage; in each attention weights, projection, GELU and second linear.
    assert rates.count(0.25) == rates.count(0.5) == 8
    assert rates[-1] == 0.125 and rates.count(0.125) == 1


def test_an_empty_batch_gives_empty_maps(thin_arch):
    for size in [(224, 224), (50, 70)]:
        maps = ConTNet(thin_arch).eval()(torch.zeros(0, 3, *size))
        assert [m.shape[0] for m in maps] == [0, 0, 0, 0]


@pytest.mark.parametrize('training', [False, True])
def test_mmcv_crops_regions_of_the_maps_rightly(thin_arch, training):
    """RoIAlign takes memory for NCHW whatever it is: it returns wrong crops of other maps."""
    ops = pytest.importorskip('mmcv.ops')
    net = ConTNet(thin_arch).train(training)
    regions = torch.tensor([[0.0, 5, 7, 60, 50], [1, 20, 10, 64, 66]])
    for x, stride in zip(net(torch.randn(2, 3, 75, 90)), net.out_strides, strict=True):
        crop = ops.RoIAlign(7, 1 / stride, 0)
        copy = x.detach().clone(memory_format=torch.contiguous_format)
        assert torch.equal(crop(x, regions), crop(copy, regions))


def test_images_become_channels_last_before_the_stem(thin_arch):
    seen = []
    net = ConTNet(thin_arch).eval()
    net.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(torch.randn(2, 3, 40, 40))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_checkpoint_keeps_nothing_of_what_is_inside(thin_arch):
    kept = []

    def watch(module, args, output):
        kept.append(weakref.ref(output))

    for with_cp in (False, True):
        kept.clear()
        net = ConTNet(thin_arch, with_cp=with_cp, out_indices=(0,)).train()
        for module in net.stages[0][0].encoders.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(watch)
        maps = net(torch.randn(2, 3, 64, 64))
        assert len(kept) == 8  # qkv, projection and two more, in each of two encoders
        assert any(ref() is not None for ref in kept) == (not with_cp)
        del maps


def test_dropout_acts_in_training_only(thin_arch):
    net = ConTNet(dict(thin_arch, drop_rates=(0.5, 0.0, 0.0, 0.0), last_drop_rate=0.5))
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        first, again = net.train()(x), net(x)
        assert not torch.equal(first[0], again[0])
        assert (first[3] == 0).float().mean() > 0.3  # on the sum, at the very end
        assert all(torch.equal(a, b) for a, b in zip(net.eval()(x), net(x), strict=True))


@pytest.mark.skipif(not HAS_CUSTOM_OPS, reason='torch before 2.4 traces all windows for minutes')
@pytest.mark.parametrize(('position', 'size'), [('absolute', (64, 64)), ('relative', (45, 99))])
def test_a_whole_network_can_be_compiled(thin_arch, size, position):
    net = ConTNet(thin_arch, position=position).eval()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        plain = net(x)
        # Not as one graph: layouts are made outside of it, which is what Stages.compile does.
        compiled = torch.compile(net, backend='eager')(x)
    for a, b in zip(compiled, plain, strict=True):  # which is computed a few windows at a time
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_backbone_can_be_pickled_and_copied(thin_arch):
    net = ConTNet(thin_arch).eval()
    x = torch.randn(1, 3, 33, 40)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(torch.equal(a, b) for a, b in zip(net(x), twin(x), strict=True))
