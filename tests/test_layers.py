"""Layers of the encoders: position tables, linear layers, encoders over runs of windows."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from contnet_mm import layers
from contnet_mm.layers import (
    AbsolutePosition,
    FeedForward,
    Linear,
    RelativePosition,
    WindowEncoders,
)

POSITIONS = ['absolute', 'relative']


def encoders(windows=(2, 4), **kwargs):
    """Encoders whose every parameter matters."""
    defaults = dict(
        num_heads=2,
        feedforward_channels=12,
        position='absolute',
        pre_norm=False,
        qkv_bias=True,
        drop_rate=0.0,
    )
    module = WindowEncoders(8, windows, **defaults | kwargs)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def test_absolute_position_has_rows_in_the_first_half_and_columns_in_the_second():
    position = AbsolutePosition(6, 4)
    torch.nn.init.normal_(position.rows)
    torch.nn.init.normal_(position.columns)
    table = position()
    assert table.shape == (16, 6)
    for place, values in enumerate(table):
        assert torch.equal(values[:3], position.rows[place // 4])
        assert torch.equal(values[3:], position.columns[place % 4])


def test_relative_position_looks_up_query_minus_key():
    position = RelativePosition(2, 4)
    torch.nn.init.normal_(position.table)
    bias = position()
    assert bias.shape == (2, 16, 16)
    for query in range(16):
        for key in range(16):
            dh, dw = query // 4 - key // 4, query % 4 - key % 4
            assert torch.equal(bias[:, query, key], position.table[(dh + 3) * 7 + dw + 3])


@pytest.fixture
def products(monkeypatch):
    """Which of the two operations ran."""
    seen = []
    for name in ('linear', 'conv2d'):
        original = getattr(F, name)

        def spy(*args, name=name, original=original, **kwargs):
            seen.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(F, name, spy)
    return seen


@pytest.mark.parametrize('shape', [(10, 6), (3, 5, 6), (1, 6), (6,)], ids=str)
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('activation', [None, F.gelu])
def test_a_linear_layer_as_convolution_has_its_values_and_gradients(
    products, shape, bias, activation
):
    layer = Linear(6, 4, bias=bias)
    x = torch.randn(*shape, requires_grad=True)
    parameters = [x, *layer.parameters()]
    out = layer(x, activation)
    assert products == ['conv2d']
    plain = F.linear(x, layer.weight, layer.bias)
    plain = plain if activation is None else activation(plain)
    torch.testing.assert_close(out, plain)
    grad = torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad(out, parameters, grad),
        torch.autograd.grad(plain, parameters, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_linear_layer_takes_a_view_that_is_not_contiguous(products):
    layer = Linear(6, 4)
    x = torch.randn(6, 10).T
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert products[0] == 'conv2d'


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_only_float32_runs_as_a_convolution(products, dtype):
    layer = Linear(6, 4).to(dtype)
    x = torch.randn(10, 6, dtype=dtype)
    out = layer(x, F.gelu)
    assert products == ['linear']
    assert torch.equal(out, F.gelu(F.linear(x, layer.weight, layer.bias)))


def test_under_autocast_a_linear_layer_stays_one(products):
    layer = Linear(6, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert layer(torch.randn(10, 6)).dtype == torch.bfloat16
    with torch.autocast('cpu', enabled=False):
        assert layer(torch.randn(10, 6)).dtype == torch.float32
    assert products == ['linear', 'conv2d']


def test_off_the_cpu_a_linear_layer_stays_one(products):
    assert Linear(6, 4).to('meta')(torch.empty(10, 6, device='meta')).shape == (10, 4)
    assert products == ['linear']


@pytest.mark.parametrize('shape', [(0, 6), (2, 0, 6)], ids=str)
def test_a_linear_layer_takes_no_tokens_at_all(shape):
    x = torch.zeros(*shape, requires_grad=True)
    out = Linear(6, 4)(x, F.gelu)
    assert out.shape == (*shape[:-1], 4)
    out.sum().backward()
    assert x.grad.shape == shape


def feed_forward(dtype=torch.float32):
    layer = FeedForward(6, 10, 0.0).to(dtype)
    x = torch.randn(7, 6, dtype=dtype, requires_grad=True)
    return layer, x, [x, *layer.parameters()]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_feed_forward_half_has_the_gradients_of_a_plain_one(dtype):
    layer, x, inputs = feed_forward(dtype)
    hidden = F.gelu(F.linear(x, layer.fc1.weight, layer.fc1.bias))
    plain = F.linear(hidden, layer.fc2.weight, layer.fc2.bias)
    out, grad = layer(x), torch.randn_like(plain)
    torch.testing.assert_close(out, plain)
    found, expected = (torch.autograd.grad(y, inputs, grad) for y in (out, plain))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_under_autocast_the_feed_forward_half_has_gradients_close_to_the_plain_ones():
    layer, x, inputs = feed_forward()
    expected = torch.autograd.grad(layer(x).square().sum(), inputs)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = layer(x)
    found = torch.autograd.grad(out.float().square().sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 0.05 * b.abs().max()


def test_the_feed_forward_half_can_be_differentiated_twice():
    layer, x, _ = feed_forward(torch.float64)
    assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_what_an_activation_gives_is_not_kept_for_the_backward_pass(monkeypatch, dtype):
    results, gelu = [], F.gelu

    def spy(x):
        result = gelu(x)
        results.append(weakref.ref(result))
        return result

    monkeypatch.setattr(F, 'gelu', spy)
    layer, x, _ = feed_forward(dtype)
    out = layer(x)
    assert results[0]() is None and out.requires_grad


@pytest.mark.parametrize('windows', [(2, 4), (4, 2), (3, 3)])
@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('pre_norm', [False, True])
def test_encoders_work_on_the_windows_of_each_image_by_themselves(windows, position, pre_norm):
    module = encoders(windows, position=position, pre_norm=pre_norm).double().eval()
    x = torch.randn(2, 8, 9, 11, dtype=torch.float64)
    with torch.no_grad():
        whole = module(x)
        side = max(windows)
        for top in range(0, 9, side):
            for left in range(0, 11, side):
                part = (..., slice(top, top + side), slice(left, left + side))
                torch.testing.assert_close(whole[part], module(x[part]))
        torch.testing.assert_close(whole[1:], module(x[1:]))


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([(2, 4), (4, 2), (7, 7)]),
    st.sampled_from(POSITIONS),
    st.sampled_from([1, 2000, 10**6]),
)
def test_runs_of_windows_have_the_values_of_all_at_once(
    batch, height, width, windows, position, run_bytes
):
    module = encoders(windows, position=position).eval()
    x = torch.randn(batch, 8, height, width)
    at_once = module(x).detach()  # with gradients, for which nothing is cut into runs
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(layers, 'RUN_BYTES', run_bytes)
        torch.testing.assert_close(module(x), at_once)


@pytest.mark.parametrize(
    ('run_windows', 'run_tokens'),
    [(1, [16] * 8 + [12] * 4 + [16] + [6]), (3, [48, 48, 32, 48, 16, 6])],
)
def test_runs_hold_as_many_windows_as_fit_and_none_is_cut(monkeypatch, run_windows, run_tokens):
    # Hidden activations of a window of 4 x 4 take 12 x 4 x 16 bytes; two maps of 9 x 11 have 8 of
    # them, 4 of 4 x 3, 4 of 1 x 4, and 2 of 1 x 3.
    monkeypatch.setattr(layers, 'RUN_BYTES', run_windows * 768)
    module, seen = encoders().eval(), []
    module[0].register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    with torch.inference_mode():
        module(torch.randn(2, 8, 9, 11))
    assert seen == run_tokens
    seen.clear()
    module(torch.randn(2, 8, 9, 11))
    assert seen == [198]


# Maps as narrow as the small windows are in order as they are, so that nothing is copied.
@pytest.mark.parametrize('size', [(9, 11), (3, 2), (4, 4)], ids=str)
@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('windows', [(2, 4), (4, 4)])
def test_encoders_leave_their_input_alone(size, grad, position, windows):
    module = encoders(windows, position=position).eval()
    x = torch.randn(2, 8, *size).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    with torch.set_grad_enabled(grad):
        out = module(x)
    assert torch.equal(x, before)
    assert out.data_ptr() != x.data_ptr()


@pytest.mark.parametrize('position', POSITIONS)
def test_an_empty_batch_passes_the_encoders(position):
    module = encoders(position=position)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert module(torch.zeros(0, 8, 9, 11)).shape == (0, 8, 9, 11)


def test_a_channels_last_map_comes_out_as_one():
    x = torch.randn(2, 8, 9, 11).contiguous(memory_format=torch.channels_last)
    assert encoders()(x).is_contiguous(memory_format=torch.channels_last)


def test_dropout_of_an_encoder_agrees_with_finite_differences():
    module = encoders(drop_rate=0.3, position='relative').double().train()
    x = torch.randn(1, 8, 3, 5, dtype=torch.float64, requires_grad=True)

    def encode(x):
        torch.manual_seed(1)
        return module(x)

    assert torch.autograd.gradcheck(encode, x)
