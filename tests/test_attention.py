"""Positions and attention per window: values, gradients, dropout, the kernel that is called."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from contnet_mm import attention, ops
from contnet_mm.windows import cut, token_order

# Sides of the outer windows, of those that attend, and of the nested ones.
SIDES = st.sampled_from([(14, 14, 7), (14, 7, 7), (7, 7, 7), (4, 4, 2), (6, 2, 2)])
MAPS = st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))
ODD = (2, 9, 11)  # batch, height, width: whole windows of 4 and all kinds of border


def order_of(maps, sides):
    batch, height, width = maps
    places = torch.arange(batch * height * width).view(batch, height, width)
    return token_order(places, (sides[0], sides[2]))


def cut_maps(maps, sides):
    batch, height, width = maps
    return cut(height, width, sides[0], count=batch)


def reference(qkv, bias, maps, side, num_heads):
    """Attention over [B, H, W, 3 * C], window after window and head after head."""
    batch, height, width = maps
    out = qkv.new_zeros(batch, height, width, qkv.shape[-1] // 3)
    for image in range(batch):
        for top in range(0, height, side):
            for left in range(0, width, side):
                part = qkv[image, top : top + side, left : left + side]
                rows, columns = part.shape[:2]
                place = torch.arange(rows * columns)
                place = place // columns * side + place % columns
                heads = [x.chunk(num_heads, dim=-1) for x in part.flatten(0, 1).chunk(3, dim=-1)]
                mixed = []
                for head, (q, k, v) in enumerate(zip(*heads, strict=True)):
                    logits = q @ k.T / q.shape[-1] ** 0.5
                    if bias is not None:
                        logits = logits + bias[head][place][:, place]
                    mixed.append(logits.softmax(-1) @ v)
                mixed = torch.cat(mixed, dim=-1).view(rows, columns, -1)
                out[image, top : top + side, left : left + side] = mixed
    return out


def make(maps, side, num_heads, width=4, dtype=torch.float64):
    """Return queries, keys and values of maps, [T, 3 * C], and a bias that matters."""
    batch, height, columns = maps
    qkv = torch.randn(batch * height * columns, 3 * num_heads * width, dtype=dtype)
    return qkv, torch.randn(num_heads, side**2, side**2, dtype=dtype)


@settings(deadline=None, max_examples=40)
@given(MAPS, SIDES, st.sampled_from([1, 2, 3]), st.booleans())
def test_attention_is_that_of_each_window_by_itself(maps, sides, num_heads, biased):
    outer, side, inner = sides
    qkv, bias = make(maps, side, num_heads)
    bias = bias if biased else None
    expected = reference(qkv.view(*maps, -1), bias, maps, side, num_heads).flatten(0, 2)
    order, windows = order_of(maps, sides), cut_maps(maps, sides)
    out = attention.mix_windows(qkv[order], bias, windows, side, inner, num_heads)
    torch.testing.assert_close(out, expected[order])


@settings(deadline=None, max_examples=20)
@given(MAPS, SIDES, st.sampled_from([1, 2]), st.booleans())
def test_the_backward_pass_of_attention_is_that_of_autograd(maps, sides, num_heads, biased):
    outer, side, inner = sides
    qkv, bias = make(maps, side, num_heads)
    order, windows = order_of(maps, sides), cut_maps(maps, sides)
    inputs = [qkv.requires_grad_()] + [bias.requires_grad_()] * biased
    out = reference(qkv.view(*maps, -1), bias if biased else None, maps, side, num_heads)
    out = out.flatten(0, 2)[order]
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, inputs, grad)
    found = attention.mix_windows_backward(
        grad,
        qkv.detach()[order],
        bias.detach() if biased else None,
        windows,
        side,
        inner,
        num_heads,
    )
    torch.testing.assert_close(found[0], expected[0][order])
    if biased:
        torch.testing.assert_close(found[1], expected[1])
    else:
        assert found[1] is None


@pytest.mark.parametrize('biased', [False, True])
def test_finite_differences_agree_with_the_gradients_of_attention(biased):
    maps, sides = (1, 3, 5), (4, 2, 2)
    qkv, bias = make(maps, 2, num_heads=2, width=2)
    inputs = (qkv.requires_grad_(), bias.requires_grad_() if biased else None)

    def mix(qkv, bias):
        return ops.mix_windows(qkv, bias, cut_maps(maps, sides), 2, (4, 2), 2, 0.0)

    assert type(mix(*inputs).grad_fn).__name__ == '_MixWindowsBackward'
    assert torch.autograd.gradcheck(mix, inputs)


@pytest.mark.parametrize('biased', [False, True])
def test_attention_keeps_nothing_but_its_inputs_for_the_backward_pass(biased):
    qkv, bias = make(ODD, 4, num_heads=2)
    inputs = [qkv.requires_grad_()] + [bias.requires_grad_()] * biased
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        windows = cut_maps(ODD, (4, 4, 2))
        out = ops.mix_windows(qkv, bias if biased else None, windows, 4, (4, 2), 2, 0.0)
    assert out.requires_grad
    assert [x.data_ptr() for x in kept] == [x.data_ptr() for x in inputs]


def test_a_float32_bias_gets_a_float32_gradient_beside_bfloat16_queries():
    qkv, bias = make(ODD, 4, num_heads=2, dtype=torch.float32)
    low = qkv.bfloat16().requires_grad_()
    full = low.detach().float().requires_grad_()
    twins = [bias.clone().requires_grad_() for _ in range(2)]
    for x, b in zip((low, full), twins, strict=True):
        out = ops.mix_windows(x, b, cut_maps(ODD, (4, 4, 2)), 4, (4, 2), 2, 0.0)
        assert out.dtype == x.dtype
        out.float().square().sum().backward()
    assert (low.grad.dtype, twins[0].grad.dtype) == (torch.bfloat16, torch.float32)
    for a, b in ((low.grad.float(), full.grad), (twins[0].grad, twins[1].grad)):
        assert (a - b).abs().max() <= 0.05 * b.abs().max()


@pytest.mark.parametrize('biased', [False, True])
def test_the_fused_kernel_gives_the_values_of_the_explicit_steps(biased):
    q, k, v = torch.randn(3, 5, 2, 12, 4, dtype=torch.float64)
    bias = torch.randn(1, 2, 12, 12, dtype=torch.float64) if biased else None
    fused = attention._fused(q, k, v, bias, 0.0)
    torch.testing.assert_close(fused, attention._attend(q, k, v, bias, 0.0, None))


@pytest.fixture
def calls(monkeypatch):
    """Calls of the fused kernel: windows, and dtypes of queries and bias, dropout, cuDNN's way."""
    seen = []

    def spy(q, k, v, attn_mask=None, dropout_p=0.0):
        cudnn = getattr(torch.backends.cuda, 'cudnn_sdp_enabled', lambda: False)()
        dtypes = q.dtype, None if attn_mask is None else attn_mask.dtype
        seen.append((len(q), dtypes, dropout_p, cudnn))
        return torch.empty_like(v)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', spy)
    return seen


def mix_elsewhere(bias_dtype=None, drop_rate=0.0, maps=ODD):
    """Attend on shapes alone, which is no CPU."""
    qkv, bias = make(maps, 4, num_heads=2)
    qkv = qkv.to('meta', torch.bfloat16)
    bias = None if bias_dtype is None else bias.to('meta', bias_dtype)
    out = attention.mix_windows(qkv, bias, cut_maps(maps, (4, 4, 2)), 4, 2, 2, drop_rate)
    assert out.shape == (len(qkv), 8)


def test_off_the_cpu_each_shape_of_window_is_one_call_of_the_fused_kernel(calls):
    mix_elsewhere(drop_rate=0.25)
    # 2 x 2 whole windows of 4 in each of two maps of 9 x 11, then right, bottom, corner.
    assert [windows for windows, *_ in calls] == [8, 4, 4, 2]
    assert {drop_rate for *_, drop_rate, _ in calls} == {0.25}


def test_the_fused_kernel_reads_a_bias_of_the_dtype_of_the_queries(calls):
    # Some kernels read a float32 bias beside bfloat16 queries as garbage and say nothing.
    mix_elsewhere(bias_dtype=torch.float32)
    assert {dtypes for _, dtypes, *_ in calls} == {(torch.bfloat16, torch.bfloat16)}


@pytest.mark.skipif(not hasattr(torch.backends.cuda, 'cudnn_sdp_enabled'), reason='no such switch')
def test_the_fused_kernel_is_never_that_of_cudnn(calls):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        mix_elsewhere()
        assert {cudnn for *_, cudnn in calls} == {False}
        assert torch.backends.cuda.cudnn_sdp_enabled()  # for others
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_windows_beyond_the_limit_of_the_kernel_go_in_runs(calls, monkeypatch):
    monkeypatch.setattr(attention, 'MAX_WINDOWS', 3)
    mix_elsewhere(bias_dtype=torch.bfloat16)
    assert [windows for windows, *_ in calls] == [3, 3, 2, 3, 1, 3, 1, 2]


def test_on_a_cpu_the_fused_kernel_is_not_called(calls):
    qkv, bias = make(ODD, 4, num_heads=2)
    attention.mix_windows(qkv, bias, cut_maps(ODD, (4, 4, 2)), 4, 2, 2)
    assert not calls


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('biased', [False, True])
def test_forward_and_backward_drop_the_same_weights(biased):
    qkv, bias = make(ODD, 4, num_heads=2)
    bias = bias.requires_grad_() if biased else None
    rest = (cut_maps(ODD, (4, 4, 2)), 4, 2, 2, 0.3)
    out = attention.mix_windows(qkv.requires_grad_(), bias, *rest, generator())
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, [qkv, bias] if biased else [qkv], grad)
    with torch.no_grad():
        found = attention.mix_windows_backward(grad, qkv, bias, *rest, generator())
        other = attention.mix_windows_backward(grad, qkv, bias, *rest, generator(4))
    for a, b, c in zip(found, expected, other, strict=False):
        torch.testing.assert_close(a, b)
        assert not torch.allclose(a, c)


@pytest.mark.parametrize('seeded', [False, True])
def test_dropout_drops_its_share_and_keeps_the_mean(seeded):
    # Windows of one token: its weight is 1, or dropped.
    qkv = torch.ones(10000, 3)
    windows = cut(100, 100, 1)
    out = attention.mix_windows(qkv, None, windows, 1, 1, 1, 0.3, generator() if seeded else None)
    dropped = (out == 0).float().mean()
    assert abs(dropped - 0.3) <= 0.02
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / 0.7))


def test_attention_without_dropout_draws_no_random_numbers():
    state = torch.get_rng_state()
    qkv, bias = make(ODD, 4, num_heads=2)
    torch.set_rng_state(state)
    attention.mix_windows(qkv, bias, cut_maps(ODD, (4, 4, 2)), 4, 2, 2)
    assert torch.equal(torch.get_rng_state(), state)


@settings(deadline=None, max_examples=40)
@given(MAPS, SIDES)
def test_each_token_gets_the_position_of_its_place_in_its_window(maps, sides):
    outer, side, inner = sides
    batch, height, width = maps
    x = torch.randn(*maps, 3, dtype=torch.float64)
    table = torch.randn(side**2, 3, dtype=torch.float64)
    tiles = table.view(side, side, 3).repeat(-(-height // side), -(-width // side), 1)
    expected = (x + tiles[:height, :width]).flatten(0, 2)
    order, windows = order_of(maps, sides), cut_maps(maps, sides)
    out = attention.add_position(x.flatten(0, 2)[order], table, windows, side, inner)
    assert torch.equal(out, expected[order])


def test_tokens_keep_their_dtype_beside_positions_of_another():
    windows = cut_maps(ODD, (4, 4, 2))
    x, table = torch.randn(198, 8, dtype=torch.bfloat16), torch.randn(16, 8)
    out = attention.add_position(x, table, windows, 4, 2)
    assert torch.equal(out, attention.add_position(x, table.bfloat16(), windows, 4, 2))


@settings(deadline=None, max_examples=20)
@given(MAPS, SIDES)
def test_the_gradient_of_the_positions_is_that_of_autograd(maps, sides):
    outer, side, inner = sides
    batch, height, width = maps
    table = torch.randn(side, side, 3, dtype=torch.float64, requires_grad=True)
    tiles = table.repeat(-(-height // side), -(-width // side), 1)[:height, :width]
    grad = torch.randn(*maps, 3, dtype=torch.float64)
    tiles.expand(batch, -1, -1, -1).backward(grad)
    order, windows = order_of(maps, sides), cut_maps(maps, sides)
    found = attention.add_position_backward(grad.flatten(0, 2)[order], windows, side, inner)
    torch.testing.assert_close(found, table.grad.flatten(0, 1))


@pytest.mark.parametrize('biased', [False, True])
def test_an_empty_batch_has_nothing_to_mix(biased):
    maps, sides = (0, 9, 11), (4, 4, 2)
    qkv, bias = make(maps, 4, num_heads=2)
    windows = cut_maps(maps, sides)
    bias = bias if biased else None
    out = attention.mix_windows(qkv, bias, windows, 4, 2, 2)
    assert out.shape == (0, 8)
    grads = attention.mix_windows_backward(out, qkv, bias, windows, 4, 2, 2)
    assert grads[0].shape == qkv.shape
    assert grads[1] is None if bias is None else not grads[1].any()
    table = torch.randn(16, 8, dtype=torch.float64)
    assert attention.add_position(out, table, windows, 4, 2).shape == (0, 8)
    assert not attention.add_position_backward(out, windows, 4, 2).any()
