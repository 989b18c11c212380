"""Self-attention inside windows: one function, and the ways to compute it.

Shapes: B images, L tokens of each in the order of
:class:`~contnet_mm.models.window_layout.WindowLayout`, C channels, P tokens of a whole window.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from contnet_mm.models.window_layout import (
    HAS_CUSTOM_OPS,
    MAX_WINDOWS,
    Way,
    WindowGroup,
    WindowLayout,
    join_groups,
    window_layout,
)

try:
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10
except ImportError:
    varlen_attn = None

# What computes attention in half precision on a GPU where nothing else decides: 'flash',
# 'efficient' or 'padded'. Flash attention works on tiles of 128 tokens, mostly empty for windows of
# 49, which no count of operations shows: `bash tools/gpu_check.sh` times all three and says which
# to set.
HALF_PRECISION_KERNEL = 'flash'
HALF_PRECISION = (torch.bfloat16, torch.float16)
_forced: list[Way] = []


@contextlib.contextmanager
def force_way(way: Way) -> Iterator[None]:
    """Let :func:`choose_way` answer with one way, to compare ways or to count operations."""
    _forced.append(way)
    try:
        yield
    finally:
        _forced.pop()


def choose_way(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    has_bias: bool = False,
    has_dropout: bool = False,
    is_compiling: bool = False,
    is_tracing: bool = False,
) -> Way:
    """Choose how to compute attention.

    Args:
        device: Of the tokens.
        dtype: Of queries, keys and values.
        head_dim: Channels of a head.
        has_bias: Whether a relative position is added to the logits.
        has_dropout: Whether attention weights are dropped now.
        is_compiling: Whether torch.compile records.
        is_tracing: Whether torch.jit.trace or torch.export records.
    """
    if is_tracing:  # those who count operations trace, and padding would count
        return Way.GROUPED if torch.jit.is_tracing() else Way.TRACED
    if _forced:
        return _forced[-1]
    if device.type == 'cpu':
        return Way.OPERATOR if is_compiling and HAS_CUSTOM_OPS else Way.GROUPED
    if has_bias or has_dropout or _cumulative_kernel(device, dtype, head_dim) is None:
        return Way.PADDED
    return Way.CUMULATIVE


def _cumulative_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return the kernel that takes cumulative lengths; None if none takes these arguments."""
    # What runs on the meta device is counted, and should count what a GPU would do.
    if device.type not in ('cuda', 'meta') or head_dim % 8 or torch.version.hip:
        return None
    efficient = 'efficient' if HAS_EFFICIENT_ATTENTION else None
    if dtype in HALF_PRECISION:
        has_flash = varlen_attn is not None and head_dim <= 256
        if HALF_PRECISION_KERNEL == 'padded':
            return None
        return 'flash' if has_flash and HALF_PRECISION_KERNEL == 'flash' else efficient
    return efficient if dtype == torch.float32 else None


def _has_known_signature() -> bool:
    """Tell whether torch's private kernel takes the arguments that it takes in torch 2.11."""
    operator = getattr(torch.ops.aten, '_efficient_attention_forward', None)
    if operator is None:
        return False
    names = [argument.name for argument in operator.default._schema.arguments]
    expected = 'query key value bias cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k dropout_p'
    return names[:11] == [*expected.split(), 'custom_mask_type', 'compute_log_sumexp']


HAS_EFFICIENT_ATTENTION = _has_known_signature()


def window_attention(
    qkv: Tensor,
    bias: Tensor | None,
    layout: WindowLayout,
    window_size: int,
    num_heads: int,
    drop_rate: float = 0.0,
) -> Tensor:
    """Average the values of each window by the similarity of queries and keys.

    Args:
        qkv: Queries, keys and values of each token, [B, L, 3 * C].
        bias: Added to the logits, query by key in the order of tokens, [heads, P, P], or None.
        layout: Of the tokens; its ``way`` says how to compute.
        window_size: Of the windows to attend in, in tokens.
        num_heads: Number of heads; divides C.
        drop_rate: Dropout of the attention weights.

    Returns:
        [B, L, C].
    """
    if layout.way is Way.CUMULATIVE:
        return _attend_cumulative(qkv, layout, window_size, num_heads)
    if layout.way in (Way.PADDED, Way.TRACED):
        return _attend_padded(qkv, bias, layout, window_size, num_heads, drop_rate)
    # The backward pass computes the weights again, and has to drop the same ones.
    seed = torch.randint(2**62, ()) if drop_rate else None
    if layout.way is Way.OPERATOR:
        options = (layout.window_sizes, window_size, num_heads, drop_rate)
        return _operator(qkv, bias, seed, layout.map_height, *options)
    if torch.is_grad_enabled() and not layout.is_traced:
        return _Grouped.apply(qkv, bias, seed, layout, window_size, num_heads, drop_rate)
    return grouped_attention(qkv, bias, seed, layout, window_size, num_heads, drop_rate)


def _attend_cumulative(
    qkv: Tensor, layout: WindowLayout, window_size: int, num_heads: int
) -> Tensor:
    """Attend in windows of all shapes by one kernel call for at most ``MAX_WINDOWS`` of them.

    The kernels need queries, keys and values [T, heads, C / heads] of one dtype (float32 for
    efficient attention; bfloat16 or float16 for both), with stride 1 in their last dimension, heads
    of a multiple of 8 channels, and lengths in int32.
    """
    batch, length, channels = qkv.shape
    runs = layout.windows[window_size].runs
    if not runs:  # an empty batch
        return qkv[..., : channels // 3]
    tokens = qkv.contiguous().view(batch * length, 3, num_heads, channels // 3 // num_heads)
    kernel = _cumulative_kernel(qkv.device, qkv.dtype, tokens.shape[-1])
    attend = _flash if kernel == 'flash' else _efficient
    if len(runs) == 1:
        out = attend(*tokens.unbind(1), runs[0].cumulative_lengths, window_size**2)
    else:
        parts = tokens.split([run.num_tokens for run in runs])
        out = torch.cat(
            [
                attend(*part.unbind(1), run.cumulative_lengths, window_size**2)
                for part, run in zip(parts, runs, strict=True)
            ]
        )
    return out.view(batch, length, channels // 3)


def _flash(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, longest: int) -> Tensor:
    return varlen_attn(q, k, v, lengths, lengths, longest, longest)


def _efficient(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, longest: int) -> Tensor:
    """Call a private operator of torch, whose signature :func:`_has_known_signature` checks."""
    q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    no_bias, no_mask_type, dropout = None, 0, 0.0
    save = torch.is_grad_enabled()
    return torch.ops.aten._efficient_attention_forward(
        *(q, k, v, no_bias, lengths, lengths, longest, longest, dropout, no_mask_type, save)
    )[0].squeeze(0)


def _attend_padded(
    qkv: Tensor,
    bias: Tensor | None,
    layout: WindowLayout,
    window_size: int,
    num_heads: int,
    drop_rate: float,
) -> Tensor:
    """Attend in windows padded to whole ones.

    What is added to the logits has the dtype of the queries: some kernels misread another one.
    """
    padding = layout.windows[window_size].padding
    if padding is not None:
        qkv = layout.reorder(qkv, padding.index, padding.place)
        mask = padding.mask.to(qkv.dtype)
    bias = None if bias is None else bias.to(qkv.dtype)
    if padding is not None:
        bias = mask if bias is None else bias + mask
    qkv = qkv.unflatten(1, (-1, window_size**2))
    if layout.way is Way.TRACED:
        weights = _weights(*split_heads(qkv, num_heads)[:2], bias)
        out = F.dropout(weights, drop_rate) @ split_heads(qkv, num_heads)[2]
        out = out.transpose(-3, -2).flatten(-2).flatten(1, 2)
    else:
        q, k, v = split_heads(qkv.flatten(0, 1), num_heads)
        bias = bias if bias is None or bias.dim() == 4 else bias[None]
        out = _attend_whole(q, k, v, bias, drop_rate)
        out = out.transpose(1, 2).flatten(2).unflatten(0, qkv.shape[:2]).flatten(1, 2)
    return out if padding is None else out.index_select(1, padding.place)


def _attend_whole(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, drop_rate: float) -> Tensor:
    """Attend in at most ``MAX_WINDOWS`` windows at once, [n, heads, P, C / heads]."""
    bias = None if bias is None else bias.expand(q.shape[0], q.shape[1], *bias.shape[2:])
    if q.shape[0] <= MAX_WINDOWS:
        return _fused(q, k, v, bias, drop_rate)
    runs = [x.split(MAX_WINDOWS) for x in (q, k, v)]
    biases = [None] * len(runs[0]) if bias is None else bias.split(MAX_WINDOWS)
    return torch.cat([_fused(*run, drop_rate) for run in zip(*runs, biases, strict=True)])


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, drop_rate: float) -> Tensor:
    with _backends():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop_rate)


def _backends() -> AbstractContextManager:
    """Leave out cuDNN's attention, which plans anew for each number of windows.

    That takes a second for each image size. torch before 2.3 has no such backend.
    """
    if not hasattr(torch.nn, 'attention'):
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )


def grouped_attention(
    qkv: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    layout: WindowLayout,
    window_size: int,
    num_heads: int,
    drop_rate: float,
) -> Tensor:
    """Attend in one group of windows of equal shape after the other, by plain products.

    On a CPU this is faster than the fused kernel, whose tiles are larger than most windows. The
    arguments are those of :func:`window_attention`.

    Args:
        qkv: As there.
        bias: As there.
        seed: Of the random numbers that say what is dropped, an integer scalar; None without
            dropout.
        layout: As there, with groups.
        window_size: As there.
        num_heads: As there.
        drop_rate: As there.
    """
    generator, parts = _generator(seed, qkv.device), []
    groups = layout.windows[window_size].groups
    for group in groups:
        q, k, v = split_heads(group.of(qkv), num_heads)
        weights = _weights(q, k, _bias_of(group, bias, q.dtype))
        if generator is not None:
            weights = weights * _kept(weights, drop_rate, generator)
        parts.append((weights @ v).transpose(-3, -2).flatten(-2))
    return join_groups(parts, groups)


def grouped_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    layout: WindowLayout,
    window_size: int,
    num_heads: int,
    drop_rate: float,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of :func:`grouped_attention`, computing attention weights again.

    By operations that can be differentiated once more.

    Args:
        grad: Of the result, [B, L, C].
        qkv: As there.
        bias: As there.
        seed: As there.
        layout: As there.
        window_size: As there.
        num_heads: As there.
        drop_rate: As there.

    Returns:
        Gradients of ``qkv``, [B, L, 3 * C], and of ``bias``, [heads, P, P], or None.
    """
    generator = _generator(seed, qkv.device)
    grad = grad.to(qkv.dtype)
    bias_grad, parts = None, []
    groups = layout.windows[window_size].groups
    for group in groups:
        q, k, v = split_heads(group.of(qkv), num_heads)
        out_grad = group.of(grad).unflatten(-1, (num_heads, -1)).transpose(-3, -2)
        weights = _weights(q, k, _bias_of(group, bias, q.dtype))
        logits_grad = out_grad @ v.transpose(-1, -2)
        dropped = weights
        if generator is not None:
            kept = _kept(weights, drop_rate, generator)
            dropped, logits_grad = weights * kept, logits_grad * kept
        logits_grad = torch._softmax_backward_data(logits_grad, weights, -1, weights.dtype)
        scale = q.shape[-1] ** -0.5
        grads = [
            (logits_grad @ k).mul_(scale),
            (logits_grad.transpose(-1, -2) @ q).mul_(scale),
            dropped.transpose(-1, -2) @ out_grad,
        ]
        parts.append(torch.stack([x.transpose(-3, -2) for x in grads], dim=-3).flatten(-3))
        if bias is not None:
            bias_grad = _add_bias_grad(bias_grad, logits_grad, group, bias)
    return join_groups(parts, groups), bias_grad


def grouped_attention_jvp(
    tangent: Tensor | None,
    bias_tangent: Tensor | None,
    qkv: Tensor,
    bias: Tensor | None,
    layout: WindowLayout,
    window_size: int,
    num_heads: int,
) -> Tensor:
    """Return how :func:`grouped_attention` without dropout changes along tangents.

    Args:
        tangent: Of ``qkv``, [B, L, 3 * C]; None for zeros.
        bias_tangent: Of ``bias``, [heads, P, P]; None for zeros.
        qkv: As there.
        bias: As there.
        layout: As there.
        window_size: As there.
        num_heads: As there.
    """
    tangent = torch.zeros_like(qkv) if tangent is None else tangent
    groups, parts = layout.windows[window_size].groups, []
    for group in groups:
        q, k, v = split_heads(group.of(qkv), num_heads)
        dq, dk, dv = split_heads(group.of(tangent), num_heads)
        weights = _weights(q, k, _bias_of(group, bias, q.dtype))
        change = (dq @ k.transpose(-1, -2) + q @ dk.transpose(-1, -2)) * q.shape[-1] ** -0.5
        if bias_tangent is not None:
            change = change + _bias_of(group, bias_tangent, q.dtype)
        change = weights * (change - (weights * change).sum(-1, keepdim=True))
        parts.append((change @ v + weights @ dv).transpose(-3, -2).flatten(-2))
    return join_groups(parts, groups)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """View queries, keys and values, [..., N, 3 * C] -> [..., heads, N, C / heads] each."""
    return tuple(x.transpose(-3, -2) for x in qkv.unflatten(-1, (3, num_heads, -1)).unbind(-3))


def _bias_of(group: WindowGroup, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the bias of windows that may be smaller than a whole one, [heads, N, N]."""
    if bias is None:
        return None
    if group.rank is not None:
        rank = torch.as_tensor(group.rank, device=bias.device)
        bias = bias[:, rank[:, None], rank]
    return bias.to(dtype)


def _add_bias_grad(
    total: Tensor | None, logits_grad: Tensor, group: WindowGroup, bias: Tensor
) -> Tensor:
    part = logits_grad.sum((0, 1, 2), dtype=bias.dtype)
    if group.rank is not None:
        rank = torch.as_tensor(group.rank, device=bias.device)
        heads = torch.arange(len(bias), device=bias.device)[:, None, None]
        part = torch.zeros_like(bias).index_put((heads, rank[:, None], rank), part)
    return part if total is None else total + part


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (logits if bias is None else logits + bias).softmax(-1)


def _generator(seed: Tensor | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device).manual_seed(int(seed))


def _kept(weights: Tensor, drop_rate: float, generator: torch.Generator) -> Tensor:
    """Return what to multiply weights with: 0 for dropped ones, 1 / (1 - drop_rate) for others."""
    random = torch.rand(weights.shape, generator=generator, device=weights.device)
    return (random >= drop_rate).to(weights.dtype) / (1 - drop_rate)


class _Grouped(torch.autograd.Function):
    """:func:`grouped_attention`, which keeps its inputs alone for the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(qkv, bias, seed, layout, window_size, num_heads, drop_rate):
        return grouped_attention(qkv, bias, seed, layout, window_size, num_heads, drop_rate)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.layout, ctx.window_size, ctx.num_heads, ctx.drop_rate = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        options = (ctx.layout, ctx.window_size, ctx.num_heads, ctx.drop_rate)
        grads = grouped_attention_backward(grad, *ctx.saved_tensors, *options)
        return *grads, None, None, None, None, None

    @staticmethod
    def jvp(ctx, tangent: Tensor | None, bias_tangent: Tensor | None, *_) -> Tensor:
        qkv, bias, seed = ctx.saved_tensors
        if seed is not None:
            raise NotImplementedError('forward-mode derivatives of attention with dropout')
        options = (ctx.layout, ctx.window_size, ctx.num_heads)
        return grouped_attention_jvp(tangent, bias_tangent, qkv, bias, *options)


def _define_operator() -> torch.library.CustomOpDef:
    """Register grouped attention as an operator that a compiler need not look into.

    How many windows of which shape there are depends on the remainders of a map's size, for which
    a compiler would make a program each.
    """
    custom_op = torch.library.custom_op

    def layout_of(qkv: Tensor, map_height: Tensor, window_sizes: Sequence[int]) -> WindowLayout:
        height = int(map_height)
        return window_layout(height, qkv.shape[1] // height, window_sizes)

    @custom_op('contnet_mm::window_attention', mutates_args=())
    def forward(
        qkv: Tensor, bias: Tensor | None, seed: Tensor | None, map_height: Tensor,
        window_sizes: Sequence[int], window_size: int, num_heads: int, drop_rate: float,
    ) -> Tensor:  # fmt: skip
        layout = layout_of(qkv, map_height, window_sizes)
        return grouped_attention(qkv, bias, seed, layout, window_size, num_heads, drop_rate)

    @forward.register_fake
    def _(qkv, *_):
        return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)

    @custom_op('contnet_mm::window_attention_backward', mutates_args=())
    def backward(
        grad: Tensor, qkv: Tensor, bias: Tensor | None, seed: Tensor | None,
        map_height: Tensor, window_sizes: Sequence[int], window_size: int, num_heads: int,
        drop_rate: float,
    ) -> list[Tensor]:  # fmt: skip
        layout = layout_of(qkv, map_height, window_sizes)
        options = (layout, window_size, num_heads, drop_rate)
        grads = grouped_attention_backward(grad, qkv.contiguous(), bias, seed, *options)
        return [x for x in grads if x is not None]

    @backward.register_fake
    def _(grad, qkv, bias, *_):
        qkv_grad = qkv.new_empty(qkv.shape)
        return [qkv_grad] if bias is None else [qkv_grad, bias.new_empty(bias.shape)]

    def setup_context(ctx, inputs, output):
        qkv, bias, seed, map_height, *ctx.options = inputs
        ctx.save_for_backward(qkv, bias, seed, map_height)

    def differentiate(ctx, grad):
        _, bias, *_ = ctx.saved_tensors
        grads = backward(grad, *ctx.saved_tensors, *ctx.options)
        return grads[0], None if bias is None else grads[1], *([None] * 6)

    forward.register_autograd(differentiate, setup_context=setup_context)
    return forward


if HAS_CUSTOM_OPS:
    _operator = _define_operator()
