"""The steps of an encoder that know of windows, as operators that a compiler need not look into.

How many windows of which shape there are depends on the remainders of a map's size, for which a
compiler would make a program each. To these operators a map is B * H * W tokens, whatever they are.
Outside a compiler the functions are called directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from contnet_mm import attention
from contnet_mm.windows import Maps, Windows, cut, reorder, window_order

AVAILABLE = hasattr(torch.library, 'custom_op')  # torch 2.4


def are_used() -> bool:
    """Tell whether torch.compile is looking on; torch.export gets torch's own operators."""
    return AVAILABLE and torch.compiler.is_dynamo_compiling()


def is_traced() -> bool:
    """Tell whether torch.compile or torch.export is looking on; torch before 2.3 cannot tell."""
    return getattr(torch.compiler, 'is_compiling', bool)()


def to_windows(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Bring a channels-last map into the order of its windows, [B, C, H, W] -> [T, C]."""
    if are_used():
        return _to_windows(x, sides)
    batch, channels, height, width = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(-1, channels)  # a free view of a channels-last map
    order = window_order(batch, height, width, tuple(sides), x.device)
    return tokens if order is None else reorder(tokens, *order)


def to_map(tokens: Tensor, maps: Maps, sides: Sequence[int]) -> Tensor:
    """Bring tokens back into a channels-last map, [T, C] -> [B, C, H, W]."""
    if are_used():
        return _to_map(tokens, maps, sides)
    order = window_order(*maps, tuple(sides), tokens.device)
    tokens = tokens if order is None else reorder(tokens, *order[::-1])
    return tokens.view(*maps, tokens.shape[-1]).permute(0, 3, 1, 2)


def add_position(
    tokens: Tensor,
    table: Tensor,
    windows: Sequence[Windows] | Maps,
    side: int,
    sides: Sequence[int],
) -> Tensor:
    """See :func:`contnet_mm.attention.add_position`; takes maps as well, which a compiler needs."""
    if isinstance(windows, Maps):
        return _add_position(tokens, table, windows, sides, side)
    return attention.add_position(tokens, table, windows, side, sides[-1])


def mix_windows(
    qkv: Tensor,
    bias: Tensor | None,
    windows: Sequence[Windows] | Maps,
    side: int,
    sides: Sequence[int],
    num_heads: int,
    drop_rate: float,
) -> Tensor:
    """See :func:`contnet_mm.attention.mix_windows`; takes maps as well, which a compiler needs."""
    if isinstance(windows, Maps):
        bias = None if bias is None else bias.to(qkv.dtype)
        # The backward pass has to drop the same weights, so the operator is told a seed.
        seed = torch.randint(2**62, ()) if drop_rate else None
        return _mix_windows(qkv, bias, seed, windows, sides, side, num_heads, drop_rate)
    if qkv.device.type == 'cpu' and not drop_rate and torch.is_grad_enabled():
        return _MixWindows.apply(qkv, bias, windows, side, sides[-1], num_heads)
    return attention.mix_windows(qkv, bias, windows, side, sides[-1], num_heads, drop_rate)


class _MixWindows(torch.autograd.Function):
    """Attention that keeps its inputs alone for the backward pass."""

    @staticmethod
    def forward(ctx, qkv, bias, windows, side, inner, num_heads):
        ctx.save_for_backward(qkv, bias)
        ctx.rest = (windows, side, inner, num_heads)
        return attention.mix_windows(qkv, bias, *ctx.rest)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        qkv_grad, bias_grad = attention.mix_windows_backward(grad, *ctx.saved_tensors, *ctx.rest)
        return qkv_grad, bias_grad, None, None, None, None


def _generator(seed: Tensor | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device).manual_seed(int(seed))


def _cut(size: Sequence[int], sides: Sequence[int]) -> list[Windows]:
    return cut(size[1], size[2], sides[0], count=size[0])


def _copy(tokens: Tensor) -> Tensor:
    return tokens.clone(memory_format=torch.contiguous_format)


def _define() -> tuple:
    """Register the operators. None of their results shares memory with an argument.

    Tokens leave them row by row, whatever memory they came in, as their fake versions promise.
    """
    custom_op = torch.library.custom_op

    @custom_op('contnet_mm::to_windows', mutates_args=())
    def windows_op(x: Tensor, sides: Sequence[int]) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(-1, channels)
        order = window_order(batch, height, width, tuple(sides), x.device)
        return _copy(tokens) if order is None else tokens.index_select(0, order[0])

    @windows_op.register_fake
    def _(x, sides):
        return x.new_empty(x.shape[0] * x.shape[2] * x.shape[3], x.shape[1])

    @custom_op('contnet_mm::to_map', mutates_args=())
    def map_op(tokens: Tensor, size: Sequence[int], sides: Sequence[int]) -> Tensor:
        order = window_order(*size, tuple(sides), tokens.device)
        tokens = _copy(tokens) if order is None else tokens.index_select(0, order[1])
        return tokens.view(*size, tokens.shape[-1]).permute(0, 3, 1, 2)

    @map_op.register_fake
    def _(tokens, size, sides):
        return tokens.new_empty(*size, tokens.shape[-1]).permute(0, 3, 1, 2)

    def windows_setup(ctx, inputs, output):
        x, ctx.sides = inputs
        ctx.size = (x.shape[0], x.shape[2], x.shape[3])

    def windows_backward(ctx, grad):
        return map_op(grad.contiguous(), ctx.size, ctx.sides), None

    def map_setup(ctx, inputs, output):
        ctx.sides = inputs[2]

    def map_backward(ctx, grad):
        return windows_op(grad, ctx.sides), None, None

    windows_op.register_autograd(windows_backward, setup_context=windows_setup)
    map_op.register_autograd(map_backward, setup_context=map_setup)

    @custom_op('contnet_mm::add_position', mutates_args=())
    def position_op(
        tokens: Tensor, table: Tensor, size: Sequence[int], sides: Sequence[int], side: int
    ) -> Tensor:
        windows = _cut(size, sides)
        return attention.add_position(tokens.contiguous(), table, windows, side, sides[1])

    @position_op.register_fake
    def _(tokens, table, size, sides, side):
        return tokens.new_empty(tokens.shape)

    @custom_op('contnet_mm::add_position_backward', mutates_args=())
    def position_backward_op(
        grad: Tensor, size: Sequence[int], sides: Sequence[int], side: int
    ) -> Tensor:
        return attention.add_position_backward(grad, _cut(size, sides), side, sides[1])

    @position_backward_op.register_fake
    def _(grad, size, sides, side):
        return grad.new_empty(side * side, grad.shape[-1])

    def position_setup(ctx, inputs, output):
        ctx.rest = inputs[2:]

    def position_backward(ctx, grad):
        return grad, position_backward_op(grad, *ctx.rest), None, None, None

    position_op.register_autograd(position_backward, setup_context=position_setup)

    @custom_op('contnet_mm::mix_windows', mutates_args=())
    def mix_op(
        qkv: Tensor,
        bias: Tensor | None,
        seed: Tensor | None,
        size: Sequence[int],
        sides: Sequence[int],
        side: int,
        num_heads: int,
        drop_rate: float,
    ) -> Tensor:
        rest = (side, sides[1], num_heads, drop_rate, _generator(seed, qkv.device))
        return attention.mix_windows(qkv, bias, _cut(size, sides), *rest)

    @mix_op.register_fake
    def _(qkv, bias, seed, size, sides, side, num_heads, drop_rate):
        return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)

    @custom_op('contnet_mm::mix_windows_backward', mutates_args=())
    def mix_backward_op(
        grad: Tensor,
        qkv: Tensor,
        bias: Tensor | None,
        seed: Tensor | None,
        size: Sequence[int],
        sides: Sequence[int],
        side: int,
        num_heads: int,
        drop_rate: float,
    ) -> list[Tensor]:
        rest = (side, sides[1], num_heads, drop_rate, _generator(seed, qkv.device))
        grads = attention.mix_windows_backward(grad, qkv, bias, _cut(size, sides), *rest)
        return [x for x in grads if x is not None]

    @mix_backward_op.register_fake
    def _(grad, qkv, bias, *rest):
        qkv_grad = qkv.new_empty(qkv.shape)
        return [qkv_grad] if bias is None else [qkv_grad, torch.empty_like(bias)]

    def mix_setup(ctx, inputs, output):
        qkv, bias, seed, *ctx.rest = inputs
        ctx.save_for_backward(qkv, bias, seed)

    def mix_backward(ctx, grad):
        _, bias, _ = saved = ctx.saved_tensors
        grads = mix_backward_op(grad, *saved, *ctx.rest)
        return grads[0], None if bias is None else grads[1], *([None] * 6)

    mix_op.register_autograd(mix_backward, setup_context=mix_setup)
    return windows_op, map_op, position_op, mix_op


if AVAILABLE:
    _to_windows, _to_map, _add_position, _mix_windows = _define()
