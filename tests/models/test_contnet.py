"""The backbone: sizes, values, gradients, what is built, dropout, dtypes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.utils import digit_version
from torch import nn

from contnet_mm import ConTNet
from contnet_mm.models import encoder
from tests.conftest import THIN_ARCH
from tests.helpers import POSITIONS, assert_close, difference, gradients, loss_of, randomize
from tests.reference import reference_maps

LOCATIONS = ['block', 'encoder']
SIZES = st.integers(32, 150)
# Small windows, of all nestings, so that a loop over them is quick.
ARCH = dict(THIN_ARCH, window_sizes=((3, 6), (6, 3), (2, 6), (4, 4)))
STRIDES = [((1, 2, 2, 2), (1, 1, 1, 1)), ((1, 2, 1, 1), (1, 1, 2, 4)), ((1, 1, 2, 1), (1, 2, 1, 2))]
any_network = dict(
    position=st.sampled_from(POSITIONS),
    feature_location=st.sampled_from(LOCATIONS),
    pre_norm=st.booleans(),
    avg_down=st.booleans(),
    deep_stem=st.booleans(),
    geometry=st.sampled_from(STRIDES),
)


def make(arch, geometry=STRIDES[0], **options):
    """Build a network of which every tensor matters, in double precision."""
    net = ConTNet(arch, strides=geometry[0], dilations=geometry[1], **options)
    return randomize(net).double().eval()


# Sizes --------------------------------------------------------------------------------------------


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
    shapes = [{k: v.shape for k, v in n.state_dict().items()} for n in (net, ConTNet(alias))]
    assert shapes[0] == shapes[1]


@settings(deadline=None, max_examples=30)
@given(height=SIZES, width=SIZES, **any_network)
def test_maps_are_contiguous_and_as_large_as_they_say(height, width, geometry, **options):
    net = make(THIN_ARCH, geometry, **options).float()
    with torch.inference_mode():
        maps = net(torch.randn(1, 3, height, width))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(net.out_channels, net.out_strides, strict=True)
    ]
    assert all(x.is_contiguous() for x in maps)


@settings(deadline=None, max_examples=10)
@given(height=SIZES, width=SIZES)
def test_map_sizes_equal_those_of_the_libraries_own_resnet(height, width):
    from mmdet.models import ResNet

    resnet, net = ResNet(18, base_channels=4), ConTNet(THIN_ARCH).eval()
    resnet.eval()
    x = torch.randn(1, 3, height, width)
    with torch.inference_mode():
        assert [m.shape[2:] for m in net(x)] == [m.shape[2:] for m in resnet(x)]


@pytest.mark.parametrize(
    ('location', 'channels'), [('block', (128, 256, 512, 1024)), ('encoder', (64, 128, 256, 1024))]
)
def test_the_maps_of_cont_m_have_the_channels_of_the_design(location, channels):
    assert ConTNet(feature_location=location).out_channels == channels


# Values -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(height=st.integers(32, 100), width=st.integers(32, 100), **any_network)
def test_maps_equal_a_loop_over_the_real_tokens_of_each_window(height, width, **options):
    torch.manual_seed(height * width)
    net = make(ARCH, **options)
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        assert_close(net(x), reference_maps(net, x), 1e-12)


# Maps of 29, 33 and 57 tokens at stride 4 have windows of nothing but padding.
@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('size', [(61, 83), (116, 132), (228, 113), (224, 32)], ids=str)
def test_maps_equal_the_loop_with_the_windows_of_the_paper(thin_arch, position, size):
    net, x = make(thin_arch, position=position).float(), torch.randn(2, 3, *size)
    with torch.no_grad():
        assert_close(net(x), reference_maps(net, x), 1e-5)


@settings(deadline=None, max_examples=12)
@given(height=st.integers(32, 80), width=st.integers(32, 80), **any_network)
def test_gradients_in_training_equal_those_of_the_loop(height, width, **options):
    torch.manual_seed(height * width)
    net = make(ARCH, **options).train()
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    tensors = [x, *net.parameters()]
    found = torch.autograd.grad(loss_of(net(x)), tensors)
    expected = torch.autograd.grad(loss_of(reference_maps(net, x)), tensors)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-9 * max(b.abs().max(), 1e-3)


@pytest.mark.parametrize('position', POSITIONS)
def test_gradients_in_float32_equal_those_of_the_loop(thin_arch, position):
    net, x = make(thin_arch, position=position).float(), torch.randn(2, 3, 61, 83)
    expected = torch.autograd.grad(loss_of(reference_maps(net, x)), [*net.parameters()])
    for a, b in zip(gradients(net, x), expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * max(b.abs().max(), 1e-3)


@settings(deadline=None, max_examples=15)
@given(height=SIZES, width=SIZES, position=st.sampled_from(POSITIONS))
def test_the_maps_of_an_image_do_not_depend_on_its_neighbours(height, width, position):
    net = make(THIN_ARCH, position=position).float()
    images = torch.randn(3, 3, height, width)
    changed = images.clone()
    changed[[0, 2]] = 100 * torch.randn(2, 3, height, width)
    with torch.inference_mode():
        for a, b, alone in zip(net(images), net(changed), net(images[1:2]), strict=True):
            assert torch.equal(a[1], b[1])
            assert difference(a[1], alone[0]) <= 1e-5


def test_an_empty_batch_gives_empty_maps(thin_arch):
    for size in [(224, 224), (50, 70)]:
        maps = ConTNet(thin_arch).eval()(torch.zeros(0, 3, *size))
        assert [m.shape[0] for m in maps] == [0, 0, 0, 0]


@pytest.mark.parametrize('location', LOCATIONS)
@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('out_indices', [(0,), (1,), (2,), (3,), (0, 2), (0, 1, 2, 3)], ids=str)
def test_every_parameter_gets_a_finite_gradient(thin_arch, out_indices, position, location):
    net = ConTNet(
        thin_arch, out_indices=out_indices, position=position, feature_location=location
    ).train()
    maps = net(torch.randn(2, 3, 45, 99))
    assert [x.shape[1] for x in maps] == list(net.out_channels)
    loss_of(maps).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize('size', [(64, 64), (45, 99)])
def test_every_pixel_of_an_image_gets_a_gradient(thin_arch, size):
    x = torch.randn(1, 3, *size, requires_grad=True)
    loss_of(ConTNet(thin_arch).eval()(x)).backward()
    assert x.grad.isfinite().all()
    assert (x.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_images_stay_as_they_were(thin_arch, memory_format):
    x = torch.randn(2, 3, 45, 99).contiguous(memory_format=memory_format)
    before, strides = x.clone(), x.stride()
    loss_of(ConTNet(thin_arch).train()(x)).backward()
    assert torch.equal(x, before) and x.stride() == strides and x.grad is None


def test_mmcv_crops_regions_of_the_maps_rightly(thin_arch):
    """RoIAlign takes memory for NCHW whatever it is: it returns wrong crops of other maps."""
    ops = pytest.importorskip('mmcv.ops')
    net = ConTNet(thin_arch).eval()
    regions = torch.tensor([[0.0, 5, 7, 60, 50], [1, 20, 10, 64, 66]])
    for x, stride in zip(net(torch.randn(2, 3, 75, 90)), net.out_strides, strict=True):
        crop = ops.RoIAlign(7, 1 / stride, 0)
        copy = x.detach().clone(memory_format=torch.contiguous_format)
        assert torch.equal(crop(x, regions), crop(copy, regions))


# What an arch says --------------------------------------------------------------------------------


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
    net = ConTNet(arch, position='relative', feature_location='encoder')
    assert net.out_channels == (12, 24, 48, 192)
    assert [len(stage) for stage in net.stages] == [1, 2, 3, 1]
    assert net.stages[-1][-1].out_drop_rate == 0.5
    for i, stage in enumerate(net.stages):
        for part, size in [p for b in stage for p in zip(b.encoders, sizes[i], strict=True)]:
            assert part.attn.qkv.in_features == 12 * 2**i
            assert part.ffn.fc1.out_features == 5 + i
            assert part.attn.position.table.shape == ((2 * size - 1) ** 2, 1 + i)
            assert part.attn.drop_rate == part.ffn.drop_rate == arch['drop_rates'][i]


def test_dropout_sits_in_each_of_its_places(thin_arch, monkeypatch):
    rates = []
    dropout, attend = nn.functional.dropout, encoder.attend

    def spy_dropout(x, p, training=True):
        rates.append(p)
        return dropout(x, p, training)

    def spy_attention(*args):
        rates.append(args[-1])
        with monkeypatch.context() as context:
            context.setattr(nn.functional, 'dropout', dropout)
            return attend(*args)

    monkeypatch.setattr(nn.functional, 'dropout', spy_dropout)
    monkeypatch.setattr(encoder, 'attend', spy_attention)
    arch = dict(thin_arch, depths=(1, 1, 1, 1), drop_rates=(0.25, 0, 0, 0.5), last_drop_rate=0.125)
    ConTNet(arch).train()(torch.randn(2, 3, 64, 64))
    # Two encoders in a stage; in each attention weights, projection, GELU and second linear.
    assert rates.count(0.25) == rates.count(0.5) == 8
    assert rates[-1] == 0.125 and rates.count(0.125) == 1


def test_dropout_acts_in_training_only(thin_arch):
    net = ConTNet(dict(thin_arch, drop_rates=(0.5, 0.0, 0.0, 0.0), last_drop_rate=0.5))
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        first, again = net.train()(x), net(x)
        assert not torch.equal(first[0], again[0])
        assert (first[3] == 0).float().mean() > 0.3  # on the sum, at the very end
        assert all(torch.equal(a, b) for a, b in zip(net.eval()(x), net(x), strict=True))


# Dtypes -------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize('position', POSITIONS)
def test_autocast_stays_near_float32_and_finite_backward(thin_arch, dtype, position):
    net = ConTNet(thin_arch, position=position).eval()
    x = torch.randn(2, 3, 37, 75)
    with torch.no_grad():
        plain = net(x)
        with torch.autocast('cpu', dtype=dtype):
            assert_close([m.float() for m in net(x)], plain, 0.1)
    with torch.autocast('cpu', dtype=dtype):
        loss = loss_of(m.float() for m in net.train()(x))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
