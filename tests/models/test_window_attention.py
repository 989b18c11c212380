"""Attention inside windows: which way is chosen, and that all have values and gradients of one."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from contnet_mm.models import window_attention as module
from contnet_mm.models.window_attention import (
    GroupedAttention,
    choose_way,
    force_way,
    window_attention,
)
from contnet_mm.models.window_layout import HAS_CUSTOM_OPS, Way, window_layout, window_permutation
from tests.numbers import HAS_HALF_ON_CPU

needs_operators = pytest.mark.skipif(
    not HAS_CUSTOM_OPS, reason='this torch has no operators of its users'
)
needs_half = pytest.mark.skipif(not HAS_HALF_ON_CPU, reason='this torch has no float16 on a CPU')
# Sizes of the outer windows, of those that attend, and of the nested ones.
SIZES = st.sampled_from([(14, 14, 7), (14, 7, 7), (7, 7, 7), (4, 4, 2), (6, 2, 2)])
MAPS = st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))
ODD = (2, 9, 11)  # batch, height, width: whole windows of 4 and all kinds of border
WAYS = [way for way in Way if way is not Way.OPERATOR or HAS_CUSTOM_OPS]
WITH_BIAS = [way for way in WAYS if way is not Way.CUMULATIVE]


def plain_attention(qkv, bias, size, num_heads):
    """Attend in [B, H, W, 3 * C], window after window and head after head.

    The bias is query by key, the tokens of a window row by row.
    """
    batch, height, width, channels = qkv.shape
    images = []
    for image in qkv:
        out = [[None] * width for _ in range(height)]
        for top in range(0, height, size):
            for left in range(0, width, size):
                part = image[top : top + size, left : left + size]
                rows, columns = part.shape[:2]
                place = torch.arange(rows * columns)
                place = place // columns * size + place % columns
                heads = [x.chunk(num_heads, dim=-1) for x in part.flatten(0, 1).chunk(3, dim=-1)]
                outs = []
                for head, (q, k, v) in enumerate(zip(*heads, strict=True)):
                    logits = q @ k.T / q.shape[-1] ** 0.5
                    if bias is not None:
                        logits = logits + bias[head][place][:, place]
                    outs.append(logits.softmax(-1) @ v)
                for i, token in enumerate(torch.cat(outs, dim=-1)):
                    out[top + i // columns][left + i % columns] = token
        images.append(torch.stack([torch.stack(row) for row in out]))
    return torch.stack(images)


def make_inputs(maps, size, num_heads, has_bias, head_dim=4, dtype=torch.float64):
    """Return queries, keys and values of maps, [B, L, 3 * C], and a bias that matters."""
    batch, height, width = maps
    qkv = torch.randn(batch, height * width, 3 * num_heads * head_dim, dtype=dtype)
    bias = torch.randn(num_heads, size**2, size**2, dtype=dtype)
    return qkv.requires_grad_(), bias.requires_grad_() if has_bias else None


def layout_for(maps, sizes, way=Way.GROUPED, device='cpu'):
    batch, *size = maps
    return window_layout(*size, (sizes[0], sizes[2]), way, batch, device)


def by_lengths(q, k, v, lengths, longest):
    """Do what a kernel with cumulative lengths does, on a CPU."""
    assert q.shape == k.shape == v.shape and q.dim() == 3
    parts = [x.split(lengths.diff().tolist()) for x in (q, k, v)]
    outs = [q.new_zeros(0, *q.shape[1:])]
    for part in zip(*parts, strict=True):
        assert 0 < len(part[0]) <= longest
        q, k, v = (x.transpose(0, 1) for x in part)
        outs.append(((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outs)


@pytest.fixture(autouse=True)
def cumulative_lengths_on_a_cpu(monkeypatch):
    """Stand in for the kernels with cumulative lengths, which need a GPU."""
    for name in ('_flash', '_efficient'):
        original = getattr(module, name)

        def attend(q, *args, original=original):
            return (by_lengths if q.device.type == 'cpu' else original)(q, *args)

        monkeypatch.setattr(module, name, attend)


@settings(deadline=None, max_examples=60)
@given(MAPS, SIZES, st.sampled_from([1, 2, 3]), st.booleans(), st.sampled_from(WAYS))
def test_every_way_has_the_values_and_gradients_of_a_plain_loop(
    maps, sizes, num_heads, has_bias, way
):
    outer, size, inner = sizes
    has_bias = has_bias and way is not Way.CUMULATIVE
    qkv, bias = make_inputs(maps, size, num_heads, has_bias)
    inputs = [qkv, bias] if has_bias else [qkv]
    expected = plain_attention(qkv.unflatten(1, maps[1:]), bias, size, num_heads).flatten(1, 2)
    grad = torch.randn_like(expected)
    expected = [expected, *torch.autograd.grad(expected, inputs, grad)]

    layout = layout_for(maps, sizes, way)
    in_order = torch.from_numpy(window_permutation(size, size, (size, inner))).long()
    ordered = None if bias is None else bias[:, in_order[:, None], in_order]
    tokens = layout.to_windows(qkv.unflatten(1, maps[1:]).permute(0, 3, 1, 2))
    out = window_attention(tokens, ordered, layout, size, num_heads)
    out = layout.to_map(out, *maps[1:]).flatten(2).transpose(1, 2)
    found = [out, *torch.autograd.grad(out, inputs, grad)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():  # which takes shorter ways
        out = window_attention(tokens, ordered, layout, size, num_heads)
        out = layout.to_map(out, *maps[1:]).flatten(2).transpose(1, 2)
        torch.testing.assert_close(out, expected[0])


@pytest.mark.parametrize('kernel', ['flash', 'efficient'])
@pytest.mark.parametrize('most', [1, 7, 65535])
def test_runs_of_cumulative_lengths_have_the_values_of_all_windows(monkeypatch, kernel, most):
    from contnet_mm.models import window_layout as layouts

    monkeypatch.setattr(layouts, '_cache', layouts._Cache())
    monkeypatch.setattr(layouts, 'MAX_WINDOWS', most)
    monkeypatch.setattr(module, '_cumulative_kernel', lambda *_: kernel)
    qkv, _ = make_inputs(ODD, 4, 2, has_bias=False)
    found, expected = (
        window_attention(qkv, None, layout_for(ODD, (4, 4, 2), way), 4, 2)
        for way in (Way.CUMULATIVE, Way.GROUPED)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('way', [Way.PADDED, Way.TRACED, Way.FUSED])
@pytest.mark.parametrize('has_bias', [False, True])
def test_runs_of_padded_windows_have_the_values_of_all_windows(monkeypatch, way, has_bias):
    monkeypatch.setattr(module, 'MAX_WINDOWS', 7)
    qkv, bias = make_inputs(ODD, 4, 2, has_bias)
    found, expected = (
        window_attention(qkv, bias, layout_for(ODD, (4, 4, 2), way), 4, 2)
        for way in (way, Way.GROUPED)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('has_bias', [False, True])
@pytest.mark.parametrize('way', WAYS)
def test_an_empty_batch_has_nothing_to_attend_to(way, has_bias):
    has_bias = has_bias and way is not Way.CUMULATIVE
    for maps in ((0, 9, 11), (0, 8, 8)):  # with and without windows at the border
        qkv, bias = make_inputs(maps, 4, 2, has_bias)
        out = window_attention(qkv, bias, layout_for(maps, (4, 4, 2), way), 4, 2)
        assert out.shape == (0, maps[1] * maps[2], 8)
        out.sum().backward()
        assert qkv.grad.shape == qkv.shape
        assert bias is None or not bias.grad.any()


@pytest.mark.parametrize('has_bias', [False, True])
def test_finite_differences_agree_with_the_gradients_of_attention(has_bias):
    maps = (1, 3, 5)
    inputs = make_inputs(maps, 2, 2, has_bias, head_dim=2)
    layout = layout_for(maps, (4, 2, 2))

    def attend(qkv, bias):
        return window_attention(qkv, bias, layout, 2, 2)

    assert type(attend(*inputs).grad_fn).__name__ == '_GroupedBackward'
    assert torch.autograd.gradcheck(attend, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(attend, inputs)


def test_attention_can_be_differentiated_sample_by_sample():
    layout = layout_for(ODD, (4, 4, 2))
    qkv, bias = (x.detach() for x in make_inputs(ODD, 4, 2, has_bias=True))

    def loss(bias, qkv):
        return window_attention(qkv[None], bias, layout, 4, 2).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(bias, qkv)
    expected = [torch.func.grad(loss)(bias, sample) for sample in qkv]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize('has_bias', [False, True])
@pytest.mark.parametrize('way', [way for way in WAYS if way in (Way.GROUPED, Way.OPERATOR)])
def test_attention_keeps_nothing_but_its_inputs_for_the_backward_pass(way, has_bias):
    qkv, bias = make_inputs(ODD, 4, 2, has_bias)
    layout, kept = layout_for(ODD, (4, 4, 2), way), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        out = window_attention(qkv, bias, layout, 4, 2)
    assert out.requires_grad
    inputs = [qkv, bias] if has_bias else [qkv]
    tensors = [x for x in kept if x.dim()]  # the operator keeps the height of the map besides
    assert [x.data_ptr() for x in tensors] == [x.data_ptr() for x in inputs]


@pytest.mark.parametrize('way', WITH_BIAS)
def test_a_float32_bias_gets_a_float32_gradient_beside_bfloat16_queries(way):
    qkv, bias = make_inputs(ODD, 4, 2, has_bias=True, dtype=torch.float32)
    low = qkv.detach().bfloat16().requires_grad_()
    full = low.detach().float().requires_grad_()
    twins = [bias.detach().clone().requires_grad_() for _ in range(2)]
    for x, b in zip((low, full), twins, strict=True):
        out = window_attention(x, b, layout_for(ODD, (4, 4, 2), way), 4, 2)
        assert out.dtype == x.dtype
        out.float().square().sum().backward()
    assert (low.grad.dtype, twins[0].grad.dtype) == (torch.bfloat16, torch.float32)
    for a, b in ((low.grad.float(), full.grad), (twins[0].grad, twins[1].grad)):
        assert (a - b).abs().max() <= 0.05 * b.abs().max()


# The kernels of GPUs keep logits in float32.
@pytest.mark.parametrize('way', [way for way in WITH_BIAS if way is not Way.PADDED])
@pytest.mark.parametrize('has_bias', [False, True])
@pytest.mark.parametrize('autocast', [False, pytest.param(True, marks=needs_half)])
def test_logits_may_exceed_what_float16_holds(way, has_bias, autocast):
    qkv, bias = make_inputs(ODD, 4, 2, has_bias, dtype=torch.float32)
    half = (300 * qkv.detach()).half().requires_grad_()
    full = half.detach().float().requires_grad_()
    layout = layout_for(ODD, (4, 4, 2), way)
    grads = torch.randn(*half.shape[:2], 8)
    maps = []
    for x in (half, full):
        own_bias = None if bias is None else bias.detach().half().to(x.dtype)
        narrow = autocast and x is half
        with torch.autocast('cpu', torch.float16) if narrow else nullcontext():
            maps.append(window_attention(x, own_bias, layout, 4, 2))
            maps[-1].backward(grads.to(x.dtype))
    assert maps[0].dtype == half.grad.dtype == torch.float16
    for found, expected in zip((maps[0], half.grad), (maps[1], full.grad), strict=True):
        assert (found - expected).abs().max() <= 2e-3 * expected.abs().max()


@pytest.mark.parametrize('has_bias', [False, True])
def test_forward_and_backward_drop_the_same_weights(has_bias):
    qkv, bias = make_inputs(ODD, 4, 2, has_bias)
    attention = GroupedAttention(layout_for(ODD, (4, 4, 2)).windows[4].groups, 2, drop_rate=0.3)
    seed, other_seed = torch.tensor(3), torch.tensor(4)
    out = attention.forward(qkv, bias, seed)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, [qkv, bias] if has_bias else [qkv], grad)
    with torch.no_grad():
        found = attention.backward(grad, qkv, bias, seed)
        other = attention.backward(grad, qkv, bias, other_seed)
    for a, b, c in zip(found, expected, other, strict=False):
        torch.testing.assert_close(a, b)
        assert not torch.allclose(a, c)


@pytest.mark.parametrize('way', WITH_BIAS)
def test_finite_differences_agree_with_the_gradients_of_dropout(way):
    maps = (1, 3, 5)
    inputs = make_inputs(maps, 2, 2, has_bias=True, head_dim=2)
    layout = layout_for(maps, (4, 2, 2), way)

    def attend(qkv, bias):
        torch.manual_seed(1)
        return window_attention(qkv, bias, layout, 2, 2, 0.3)

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


@pytest.mark.parametrize('way', WITH_BIAS)
def test_dropout_drops_its_share_keeps_the_mean_and_follows_the_seed_of_torch(way):
    # Windows of one token: its weight is 1, or dropped.
    layout, qkv = window_layout(100, 100, (1, 1), way), torch.ones(1, 10000, 3)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(window_attention(qkv, None, layout, 1, 1, 0.3))
    out = results[0]
    assert abs((out == 0).float().mean() - 0.3) <= 0.02
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / 0.7))
    assert torch.equal(out, results[1]) and not torch.equal(out, results[2])


@pytest.mark.parametrize('way', WAYS)
def test_attention_without_dropout_draws_no_random_numbers(way):
    qkv, _ = make_inputs(ODD, 4, 2, has_bias=False)
    state = torch.get_rng_state()
    window_attention(qkv, None, layout_for(ODD, (4, 4, 2), way), 4, 2).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture
def has_all_kernels(monkeypatch):
    """Let torch be one that has all kernels with cumulative lengths."""
    monkeypatch.setattr(module, 'varlen_attn', print)
    monkeypatch.setattr(module, 'HAS_EFFICIENT_ATTENTION', True)
    monkeypatch.setattr(torch.version, 'hip', None)
    monkeypatch.setattr(module, 'HAS_CUSTOM_OPS', True)


@pytest.mark.parametrize(
    ('device', 'dtype', 'head_dim', 'kinds', 'way'),
    [
        ('cpu', FLOAT32, 32, {}, Way.GROUPED),
        ('cpu', BFLOAT16, 32, dict(has_bias=True, has_dropout=True), Way.GROUPED),
        ('cpu', FLOAT32, 32, dict(is_compiling=True), Way.OPERATOR),
        ('cpu', FLOAT32, 32, dict(is_compiling=True, is_whole=True), Way.FUSED),
        ('cpu', FLOAT32, 32, dict(is_whole=True), Way.GROUPED),
        ('cpu', FLOAT32, 32, dict(is_tracing=True), Way.TRACED),
        ('cuda', FLOAT32, 32, dict(is_tracing=True), Way.TRACED),
        ('cuda', FLOAT32, 32, dict(is_tracing=True, is_compiling=True), Way.TRACED),
        ('cuda', FLOAT32, 32, {}, Way.CUMULATIVE),
        ('cuda', BFLOAT16, 32, {}, Way.CUMULATIVE),
        ('cuda', FLOAT16, 32, {}, Way.CUMULATIVE),
        ('cuda', BFLOAT16, 32, dict(is_compiling=True), Way.CUMULATIVE),
        ('meta', FLOAT32, 32, {}, Way.CUMULATIVE),
        ('meta', BFLOAT16, 32, {}, Way.CUMULATIVE),
        ('cuda', FLOAT32, 32, dict(has_bias=True), Way.PADDED),
        ('cuda', BFLOAT16, 32, dict(has_dropout=True), Way.PADDED),
        ('meta', BFLOAT16, 32, dict(has_bias=True), Way.PADDED),
        ('cuda', FLOAT32, 12, {}, Way.PADDED),
        ('cuda', BFLOAT16, 12, {}, Way.PADDED),
        ('cuda', torch.float64, 32, {}, Way.PADDED),
        ('mps', FLOAT32, 32, {}, Way.PADDED),
        ('xpu', BFLOAT16, 32, {}, Way.PADDED),
    ],
)
def test_the_way_follows_from_device_dtype_and_options(
    has_all_kernels, device, dtype, head_dim, kinds, way
):
    assert choose_way(torch.device(device), dtype, head_dim, **kinds) is way


@pytest.mark.parametrize(
    ('lacks', 'dtype', 'kernel'),
    [
        ({}, BFLOAT16, 'flash'),
        ({}, FLOAT32, 'efficient'),
        (dict(HALF_PRECISION_KERNEL='efficient'), FLOAT16, 'efficient'),
        (dict(varlen_attn=None), BFLOAT16, 'efficient'),
        (dict(varlen_attn=None, HAS_EFFICIENT_ATTENTION=False), BFLOAT16, None),
        (dict(HAS_EFFICIENT_ATTENTION=False), FLOAT32, None),
        (dict(HAS_EFFICIENT_ATTENTION=False), BFLOAT16, 'flash'),
    ],
    ids=str,
)
def test_a_torch_without_a_kernel_takes_another_or_pads(
    has_all_kernels, monkeypatch, lacks, dtype, kernel
):
    for name, value in lacks.items():
        monkeypatch.setattr(module, name, value)
    device = torch.device('cuda')
    assert module._cumulative_kernel(device, dtype, 32) == kernel
    assert choose_way(device, dtype, 32) is (Way.PADDED if kernel is None else Way.CUMULATIVE)


def test_heads_too_wide_for_flash_attention_and_rocm_get_another_kernel(
    has_all_kernels, monkeypatch
):
    device = torch.device('cuda')
    assert module._cumulative_kernel(device, BFLOAT16, 264) == 'efficient'
    monkeypatch.setattr(torch.version, 'hip', '6.0')
    assert choose_way(device, BFLOAT16, 32) is choose_way(device, FLOAT32, 32) is Way.PADDED


def test_a_compiler_without_operators_of_its_users_sees_all_windows(monkeypatch):
    monkeypatch.setattr(module, 'HAS_CUSTOM_OPS', False)
    assert choose_way(torch.device('cpu'), FLOAT32, 32, is_compiling=True) is Way.GROUPED


def test_a_forced_way_is_taken_and_undone_even_after_an_error():
    def way(**kinds):
        return choose_way(torch.device('cpu'), FLOAT32, 32, **kinds)

    with force_way(Way.PADDED):
        assert way() is Way.PADDED
        with pytest.raises(ZeroDivisionError), force_way(Way.CUMULATIVE):
            assert way() is Way.CUMULATIVE
            raise ZeroDivisionError
        assert way() is Way.PADDED
        assert way(is_tracing=True) is Way.TRACED  # other ways cannot be exported
    assert way() is Way.GROUPED


@needs_operators
@pytest.mark.parametrize('is_contiguous', [False, True])
@pytest.mark.parametrize('size', [[9, 11], [9, 2], [4, 4]], ids=str)
@pytest.mark.parametrize('has_bias', [False, True])
@pytest.mark.parametrize('drop_rate', [0.0, 0.3])
def test_operators_keep_their_promises_to_a_compiler(is_contiguous, size, has_bias, drop_rate):
    window_size = 4 if is_contiguous else 2
    qkv, bias = make_inputs((2, *size), window_size, 2, has_bias, dtype=FLOAT32)
    if not is_contiguous:
        qkv = nn.Parameter(qkv.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0))
    if has_bias:  # as the table of relative positions gives it, with heads innermost
        bias = nn.Parameter(bias.detach().permute(1, 2, 0).contiguous().permute(2, 0, 1))
    seed = torch.tensor(5) if drop_rate else None
    options = torch.tensor(size[0]), [4, 2], window_size, 2, drop_rate
    forward = torch.ops.contnet_mm.window_attention.default
    torch.library.opcheck(forward, (qkv, bias, seed, *options))
    grad = torch.randn(2, size[0] * size[1], 8)
    if not is_contiguous:
        grad = grad.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    detached = None if bias is None else bias.detach()
    backward = torch.ops.contnet_mm.window_attention_backward.default
    arguments = (grad, qkv.detach(), detached, seed, *options)
    torch.library.opcheck(backward, arguments)
    # Generated code relies on these strides, which opcheck does not compare.
    assert all(x.is_contiguous() for x in backward(*arguments))


@needs_operators
@pytest.mark.parametrize('drop_rate', [0.0, 0.3])
def test_the_operator_computes_what_the_function_computes(drop_rate):
    inputs = make_inputs(ODD, 4, 2, has_bias=True)
    results = []
    for way in (Way.GROUPED, Way.OPERATOR):
        torch.manual_seed(3)
        out = window_attention(*inputs, layout_for(ODD, (4, 4, 2), way), 4, 2, drop_rate)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
