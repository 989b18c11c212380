"""Self-attention inside windows: one function, and the ways to compute it.

Shapes: B images, L tokens of each in the order of
:class:`~contnet_mm.models.window_layout.WindowLayout`, C channels, P tokens of a whole window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from contnet_mm.models.linear import autocast_dtype
from contnet_mm.models.window_layout import (
    HAS_CUSTOM_OPS,
    MAX_WINDOWS,
    Way,
    WindowGroup,
    WindowLayout,
    concatenate,
    join_groups,
    window_layout,
)

try:
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10
except ImportError:
    varlen_attn = None

# The default for attention in half precision on a GPU: 'flash', 'efficient' or 'padded'. Flash
# attention works on tiles of 128 tokens, mostly empty for windows of 49, which no count of
# operations shows: `bash tools/gpu_check.sh` times all three and says which to set.
HALF_PRECISION_KERNEL = 'flash'
HALF_PRECISION = (torch.bfloat16, torch.float16)
_forced: list[Way] = []


@contextmanager
def force_way(way: Way) -> Iterator[None]:
    """Make :func:`choose_way` return one way, to compare ways or to count operations."""
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
    is_whole: bool = False,
) -> Way:
    """Choose how to compute attention.

    Args:
        device: Device of the tokens.
        dtype: Dtype of queries, keys and values.
        head_dim: Channels of a head.
        has_bias: Whether a relative position is added to the logits.
        has_dropout: Whether attention weights are dropped now.
        is_compiling: Whether torch.compile records.
        is_tracing: Whether torch.jit.trace or torch.export records.
        is_whole: Whether the border of the map cuts no window, now and in whatever else the
            compiled program is for.
    """
    if is_tracing:  # counters of operations trace, and would count padding
        return Way.GROUPED if torch.jit.is_tracing() else Way.TRACED
    if _forced:
        return _forced[-1]
    if device.type == 'cpu':
        if not (is_compiling and HAS_CUSTOM_OPS):
            return Way.GROUPED
        return Way.FUSED if is_whole else Way.OPERATOR
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
        layout: Layout of the tokens; its ``way`` says how to compute.
        window_size: Side of the windows to attend in, in tokens.
        num_heads: Number of heads; divides C.
        drop_rate: Dropout of the attention weights.

    Returns:
        [B, L, C].
    """
    if layout.way is Way.CUMULATIVE:
        return _attend_cumulative(qkv, layout, window_size, num_heads)
    if layout.way in (Way.PADDED, Way.TRACED, Way.FUSED):
        return _attend_padded(qkv, bias, layout, window_size, num_heads, drop_rate)
    # The backward pass computes the weights again, and has to drop the same ones.
    seed = torch.randint(2**62, ()) if drop_rate else None
    if layout.way is Way.OPERATOR:
        options = (layout.window_sizes, window_size, num_heads, drop_rate)
        return _operator(qkv, bias, seed, layout.map_height, *options)
    attention = GroupedAttention(layout.windows[window_size].groups, num_heads, drop_rate)
    if torch.is_grad_enabled() and not layout.is_traced:
        return _Grouped.apply(qkv, bias, seed, attention)
    return attention.forward(qkv, bias, seed)


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
    parts = [tokens] if len(runs) == 1 else tokens.split([run.num_tokens for run in runs])
    outs = [
        attend(*part.unbind(1), run.cumulative_lengths, window_size**2)
        for part, run in zip(parts, runs, strict=True)
    ]
    return concatenate(outs, 0).view(batch, length, channels // 3)


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
    bias = None if bias is None else bias.to(qkv.dtype)
    if padding is not None:
        qkv = layout.select(qkv, padding.index, padding.inverse)
        mask = padding.mask.to(qkv.dtype)
        bias = mask if bias is None else bias + mask
    qkv = qkv.unflatten(1, (-1, window_size**2))
    if layout.way is not Way.PADDED:
        with _in_float32(qkv):
            q, k, v = split_heads(_widen(qkv), num_heads)
            out = _merge_heads(F.dropout(_weights(q, k, bias), drop_rate) @ v).to(qkv.dtype)
    else:
        q, k, v = split_heads(qkv.flatten(0, 1), num_heads)
        bias = bias if bias is None or bias.dim() == 4 else bias[None]
        out = _merge_heads(_attend_whole(q, k, v, bias, drop_rate)).unflatten(0, qkv.shape[:2])
    out = out.flatten(1, 2)
    return out if padding is None else out.index_select(1, padding.inverse)


def _attend_whole(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, drop_rate: float) -> Tensor:
    """Attend in whole windows, at most ``MAX_WINDOWS`` at once, [n, heads, P, C / heads]."""
    bias = None if bias is None else bias.expand(q.shape[0], q.shape[1], *bias.shape[2:])
    if q.shape[0] > MAX_WINDOWS:
        biases = repeat(None) if bias is None else bias.split(MAX_WINDOWS)
        parts = zip(*(x.split(MAX_WINDOWS) for x in (q, k, v)), biases, strict=False)
        return torch.cat([_attend_whole(*part, drop_rate) for part in parts])
    with _sdpa_backends():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop_rate)


def _sdpa_backends() -> AbstractContextManager:
    """Leave out cuDNN's attention, which plans anew for each number of windows.

    That takes a second for each image size. torch before 2.3 has no such backend.
    """
    if not hasattr(torch.nn, 'attention'):
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """View queries, keys and values, [..., N, 3 * C] -> [..., heads, N, C / heads] each."""
    return tuple(x.transpose(-3, -2) for x in qkv.unflatten(-1, (3, num_heads, -1)).unbind(-3))


def _merge_heads(x: Tensor) -> Tensor:
    """Concatenate heads, [..., heads, N, C / heads] -> [..., N, C]."""
    return x.transpose(-3, -2).flatten(-2)


def _widen(x: Tensor) -> Tensor:
    """Bring float16 into float32, as kernels of GPUs do inside: logits soon exceed 65504."""
    return x.float() if x.dtype == torch.float16 else x


def _in_float32(x: Tensor) -> AbstractContextManager:
    """Keep autocast from narrowing again what :func:`_widen` made of ``x``."""
    if x.dtype != torch.float16 or autocast_dtype(x.device.type) is None:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (logits if bias is None else logits + bias).softmax(-1)


@dataclass(frozen=True, eq=False)
class GroupedAttention:
    """Attention by plain products, in one group of windows of equal shape after the other.

    On a CPU this is faster than the fused kernel, whose tiles are larger than most windows.
    ``qkv``, ``bias`` and what is returned are as in :func:`window_attention`. ``seed``, an integer
    scalar, is that of the random numbers that say what is dropped; None without dropout.

    Args:
        groups: All windows, by shape.
        num_heads: Number of heads.
        drop_rate: Dropout of the attention weights.
    """

    groups: tuple[WindowGroup, ...]
    num_heads: int
    drop_rate: float

    def forward(self, qkv: Tensor, bias: Tensor | None, seed: Tensor | None) -> Tensor:
        """Attend in each window, [B, L, 3 * C] -> [B, L, C]."""
        generator, parts = _generator(seed, qkv.device), []
        with _in_float32(qkv):
            for group in self.groups:
                q, k, v = split_heads(_widen(group.of(qkv)), self.num_heads)
                weights = _weights(q, k, _bias_of(group, bias, q.dtype))
                if generator is not None:
                    weights = weights * self._dropout_scale(weights, generator)
                parts.append(_merge_heads(weights @ v).to(qkv.dtype))
        return join_groups(parts, self.groups)

    def backward(
        self, grad: Tensor, qkv: Tensor, bias: Tensor | None, seed: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of ``qkv`` and ``bias`` (or None), given that of the result.

        Attention weights are computed again, by operations that can be differentiated once more.
        """
        generator = _generator(seed, qkv.device)
        grad = grad.to(qkv.dtype)
        bias_grad, parts = None, []
        with _in_float32(qkv):
            for group in self.groups:
                q, k, v = split_heads(_widen(group.of(qkv)), self.num_heads)
                out_grad = _widen(group.of(grad)).unflatten(-1, (self.num_heads, -1))
                out_grad = out_grad.transpose(-3, -2)
                weights = _weights(q, k, _bias_of(group, bias, q.dtype))
                logits_grad = out_grad @ v.transpose(-1, -2)
                dropped = weights
                if generator is not None:
                    kept = self._dropout_scale(weights, generator)
                    dropped, logits_grad = weights * kept, logits_grad * kept
                logits_grad = torch._softmax_backward_data(logits_grad, weights, -1, weights.dtype)
                scale = q.shape[-1] ** -0.5
                grads = [
                    (logits_grad @ k).mul_(scale),
                    (logits_grad.transpose(-1, -2) @ q).mul_(scale),
                    dropped.transpose(-1, -2) @ out_grad,
                ]
                grads = torch.stack([x.transpose(-3, -2) for x in grads], dim=-3).flatten(-3)
                parts.append(grads.to(qkv.dtype))
                if bias is not None:
                    part = _bias_grad_of(group, bias, logits_grad)
                    bias_grad = part if bias_grad is None else bias_grad + part
        return join_groups(parts, self.groups), bias_grad

    def jvp(
        self, tangent: Tensor | None, bias_tangent: Tensor | None, qkv: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Return the tangent of the result without dropout, given those of ``qkv`` and ``bias``."""
        tangent, parts = torch.zeros_like(qkv) if tangent is None else tangent, []
        with _in_float32(qkv):
            for group in self.groups:
                q, k, v = split_heads(_widen(group.of(qkv)), self.num_heads)
                dq, dk, dv = split_heads(_widen(group.of(tangent)), self.num_heads)
                weights = _weights(q, k, _bias_of(group, bias, q.dtype))
                change = (dq @ k.transpose(-1, -2) + q @ dk.transpose(-1, -2)) * q.shape[-1] ** -0.5
                if bias_tangent is not None:
                    change = change + _bias_of(group, bias_tangent, q.dtype)
                change = weights * (change - (weights * change).sum(-1, keepdim=True))
                parts.append(_merge_heads(change @ v + weights @ dv).to(qkv.dtype))
        return join_groups(parts, self.groups)

    def _dropout_scale(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Draw what to multiply weights with: 0 (dropped), or 1 / (1 - drop_rate)."""
        random = torch.rand(weights.shape, generator=generator, device=weights.device)
        return (random >= self.drop_rate).to(weights.dtype) / (1 - self.drop_rate)


def _generator(seed: Tensor | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device).manual_seed(int(seed))


def _bias_of(group: WindowGroup, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the bias of windows that may be smaller than a whole one, [heads, N, N]."""
    if bias is None:
        return None
    if group.rank is not None:
        rank = torch.as_tensor(group.rank, device=bias.device)
        bias = bias[:, rank[:, None], rank]
    return bias.to(dtype)


def _bias_grad_of(group: WindowGroup, bias: Tensor, logits_grad: Tensor) -> Tensor:
    grad = logits_grad.sum((0, 1, 2), dtype=bias.dtype)
    if group.rank is None:
        return grad
    rank = torch.as_tensor(group.rank, device=bias.device)
    heads = torch.arange(len(bias), device=bias.device)[:, None, None]
    # The bias may have heads innermost, but the compiler was promised a contiguous gradient.
    zeros = torch.zeros_like(bias, memory_format=torch.contiguous_format)
    return zeros.index_put((heads, rank[:, None], rank), grad)


class _Grouped(torch.autograd.Function):
    """:class:`GroupedAttention`, which keeps its inputs alone for the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(qkv, bias, seed, attention) -> Tensor:
        return attention.forward(qkv, bias, seed)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.attention = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.attention.backward(grad, *ctx.saved_tensors), None, None

    @staticmethod
    def jvp(ctx, tangent: Tensor | None, bias_tangent: Tensor | None, *_) -> Tensor:
        qkv, bias, seed = ctx.saved_tensors
        if seed is not None:
            raise NotImplementedError('forward-mode derivatives of attention with dropout')
        return ctx.attention.jvp(tangent, bias_tangent, qkv, bias)


def _define_operator() -> torch.library.CustomOpDef:
    """Register :class:`GroupedAttention` as an operator that a compiler need not look into.

    How many windows of which shape there are depends on the remainders of a map's size, for which
    a compiler would make a program each.
    """
    custom_op = torch.library.custom_op

    def attention_of(qkv, map_height, window_sizes, window_size, *options) -> GroupedAttention:
        height = int(map_height)
        layout = window_layout(height, qkv.shape[1] // height, window_sizes)
        return GroupedAttention(layout.windows[window_size].groups, *options)

    @custom_op('contnet_mm::window_attention', mutates_args=())
    def forward(
        qkv: Tensor, bias: Tensor | None, seed: Tensor | None, map_height: Tensor,
        window_sizes: Sequence[int], window_size: int, num_heads: int, drop_rate: float,
    ) -> Tensor:  # fmt: skip
        options = (map_height, window_sizes, window_size, num_heads, drop_rate)
        return attention_of(qkv, *options).forward(qkv, bias, seed)

    @forward.register_fake
    def _(qkv, *_):
        return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)

    @custom_op('contnet_mm::window_attention_backward', mutates_args=())
    def backward(
        grad: Tensor, qkv: Tensor, bias: Tensor | None, seed: Tensor | None,
        map_height: Tensor, window_sizes: Sequence[int], window_size: int, num_heads: int,
        drop_rate: float,
    ) -> list[Tensor]:  # fmt: skip
        options = (map_height, window_sizes, window_size, num_heads, drop_rate)
        grads = attention_of(qkv, *options).backward(grad, qkv.contiguous(), bias, seed)
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
