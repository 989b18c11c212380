"""The kernels as operators of torch, with shapes for compilers, gradients and FLOPs."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from contnet_mm.models.kernels import attention, mlp, norm

custom_op = torch.library.custom_op


def _on(x: Tensor) -> AbstractContextManager:
    """Launch on the device of a tensor, which is not always the current one; without autocast."""
    stack = ExitStack()
    stack.enter_context(torch.autocast(x.device.type, enabled=False))
    if x.is_cuda:
        stack.enter_context(torch.cuda.device(x.device))
    return stack


def _norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, scale and shift of a layer norm over [T, C]."""
    out, gamma_grad, beta_grad = norm.backward(grad.contiguous(), x, mean, rstd, gamma)
    return out, gamma_grad.to(gamma.dtype), beta_grad.to(beta.dtype)


def _normalise(x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return ((x - mean[:, None]) * rstd[:, None] * gamma + beta).to(x.dtype)


def position_map(table: Tensor, height: int, width: int, side: int) -> Tensor:
    """Lay a table of positions, [P, C], out over a map, [H, W, C]."""
    rows = torch.arange(height, device=table.device) % side
    columns = torch.arange(width, device=table.device) % side
    return table[rows[:, None] * side + columns]


def sum_by_place(x: Tensor, side: int) -> Tensor:
    """Add up the tokens at each place of their windows, [B, H, W, C] -> [P, C] in float32.

    Without the atomic additions of an index, so that the sum has one order.
    """
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    x = x.view(batch, x.shape[1] // side, side, x.shape[2] // side, side, channels)
    return x.sum((0, 1, 3), dtype=torch.float32).view(side * side, channels)


@custom_op('contnet_mm::fused_mlp', mutates_args=())
def fused_mlp(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor, beta: Tensor,
    eps: float, pre_norm: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See :func:`contnet_mm.models.kernels.mlp.forward`; tensors may lie in memory as they like."""
    tensors = [t.contiguous() for t in (x, w1, b1, w2, b2, gamma, beta)]
    with _on(x):
        return mlp.forward(*tensors, eps, pre_norm, save)


@fused_mlp.register_fake
def _(x, w1, b1, w2, b2, gamma, beta, eps, pre_norm, save):
    total = x.new_empty(x.shape[0] if save and not pre_norm else 0, x.shape[1])
    statistics = [x.new_empty(x.shape[0] if save else 0, dtype=torch.float32) for _ in range(2)]
    return x.new_empty(x.shape), total, *statistics


@custom_op('contnet_mm::fused_mlp_backward', mutates_args=())
def fused_mlp_backward(
    grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, gamma: Tensor, beta: Tensor,
    total: Tensor, mean: Tensor, rstd: Tensor, pre_norm: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the tensors of :func:`fused_mlp`, in their order."""
    with _on(x):
        return _mlp_grads(grad, x, w1, b1, w2, gamma, beta, total, mean, rstd, pre_norm)


def _mlp_grads(grad, x, w1, b1, w2, gamma, beta, total, mean, rstd, pre_norm) -> list[Tensor]:
    grad, x, w1, b1, w2 = (t.contiguous() for t in (grad, x, w1, b1, w2))
    gamma, beta = gamma.contiguous(), beta.contiguous()
    sum_grad = grad
    if not pre_norm:
        sum_grad, *norm_grads = _norm_backward(grad, total, mean, rstd, gamma, beta)
    x_grad, w1_grad, b1_grad, w2_grad = mlp.backward(
        sum_grad, x, w1, b1, w2, gamma, beta, mean, rstd, pre_norm
    )
    if pre_norm:
        y_grad, *norm_grads = _norm_backward(x_grad, x, mean, rstd, gamma, beta)
        x_grad = y_grad + grad
    b2_grad = sum_grad.sum(0, dtype=torch.float32)
    like = (w1, b1, w2, b1)  # b2, which is not here, has the dtype of b1
    grads = zip(like, (w1_grad, b1_grad, w2_grad, b2_grad), strict=True)
    return [x_grad, *(g.to(t.dtype).contiguous() for t, g in grads), *norm_grads]


@fused_mlp_backward.register_fake
def _(grad, x, w1, b1, w2, gamma, beta, total, mean, rstd, pre_norm):
    like = (x, w1, b1, w2)
    grads = [t.new_empty(t.shape) for t in like]
    return [*grads, b1.new_empty(x.shape[1]), *(t.new_empty(t.shape) for t in (gamma, beta))]


def _mlp_setup(ctx, inputs, output):
    x, w1, b1, w2, _, gamma, beta, _, ctx.pre_norm, ctx.saves = inputs
    ctx.save_for_backward(x, w1, b1, w2, gamma, beta, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _mlp_backward(ctx, grad, *_):
    if grad is None:  # nothing depends on the result after all
        return (None,) * 10
    _check_saved(ctx)
    grads = fused_mlp_backward(grad, *ctx.saved_tensors, ctx.pre_norm)
    return *grads, None, None, None


def _check_saved(ctx) -> None:
    if not ctx.saves:
        raise ValueError('save must be True where a backward pass is to follow, got False')


fused_mlp.register_autograd(_mlp_backward, setup_context=_mlp_setup)


@custom_op('contnet_mm::fused_attention', mutates_args=())
def fused_attention(
    x: Tensor, position: Tensor | None, bias: Tensor | None, qkv_weight: Tensor,
    qkv_bias: Tensor | None, weight: Tensor, proj_bias: Tensor, gamma: Tensor, beta: Tensor,
    eps: float, side: int, num_heads: int, pre_norm: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See :func:`contnet_mm.models.kernels.attention.forward`; memory as for :func:`fused_mlp`."""
    tensors = (x, position, bias, qkv_weight, qkv_bias, weight, proj_bias, gamma, beta)
    tensors = [None if t is None else t.contiguous() for t in tensors]
    with _on(x):
        return attention.forward(*tensors, eps, side, num_heads, pre_norm, save)


@fused_attention.register_fake
def _(x, position, bias, qkv_weight, qkv_bias, weight, proj_bias, gamma, beta, *rest):
    _, _, num_heads, pre_norm, save = rest
    tokens, channels = x.shape[0] * x.shape[1] * x.shape[2], x.shape[3]
    mixed = x.new_empty(tokens if save or num_heads > 1 else 0, channels)
    total = x.new_empty(tokens if save and not pre_norm else 0, channels)
    statistics = [x.new_empty(tokens if save else 0, dtype=torch.float32) for _ in range(2)]
    return x.new_empty(x.shape), mixed, total, *statistics


@custom_op('contnet_mm::fused_attention_backward', mutates_args=())
def fused_attention_backward(
    grad: Tensor, x: Tensor, position: Tensor | None, bias: Tensor | None, qkv_weight: Tensor,
    qkv_bias: Tensor | None, weight: Tensor, gamma: Tensor, beta: Tensor, mixed: Tensor,
    total: Tensor, mean: Tensor, rstd: Tensor, side: int, num_heads: int, pre_norm: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the tensors of :func:`fused_attention` that are there, in their order."""
    rest = (weight, gamma, beta, mixed, total, mean, rstd, side, num_heads, pre_norm)
    with _on(x):
        return _attention_grads(grad, x, position, bias, qkv_weight, qkv_bias, *rest)


def _attention_grads(
    grad, x, position, bias, qkv_weight, qkv_bias, weight, gamma, beta, mixed, total, mean, rstd,
    side, num_heads, pre_norm,
) -> list[Tensor]:  # fmt: skip
    _, height, width, channels = x.shape
    grad = grad.reshape(-1, channels)
    if position is not None:
        x = x + position_map(position, height, width, side)
    tokens, gamma = x.reshape(-1, channels).contiguous(), gamma.contiguous()
    if pre_norm:
        sum_grad, y = grad, _normalise(tokens, mean, rstd, gamma, beta)
    else:
        sum_grad, *norm_grads = _norm_backward(grad, total, mean, rstd, gamma, beta)
        y = tokens
    bias = None if bias is None else bias.contiguous()
    qkv = F.linear(y, qkv_weight, qkv_bias).contiguous()
    mixed_grad = (sum_grad @ weight).contiguous()
    qkv_grad, bias_grad = attention.backward(mixed_grad, qkv, bias, height, width, side, num_heads)
    x_grad = qkv_grad @ qkv_weight
    if pre_norm:
        x_grad, *norm_grads = _norm_backward(x_grad, tokens, mean, rstd, gamma, beta)
    x_grad = (x_grad + sum_grad).view(x.shape)
    grads = [x_grad]
    if position is not None:
        grads.append(sum_by_place(x_grad, side).to(position.dtype))
    if bias is not None:
        grads.append(bias_grad.to(bias.dtype))
    grads.append(qkv_grad.t() @ y)
    if qkv_bias is not None:
        grads.append(qkv_grad.sum(0))
    return [*grads, sum_grad.t() @ mixed, sum_grad.sum(0), *norm_grads]


@fused_attention_backward.register_fake
def _(grad, x, position, bias, qkv_weight, qkv_bias, weight, gamma, beta, *_):
    like = (x, position, bias, qkv_weight, qkv_bias, weight)
    grads = [t.new_empty(t.shape) for t in like if t is not None]
    return [*grads, x.new_empty(x.shape[3]), *(t.new_empty(t.shape) for t in (gamma, beta))]


def _attention_setup(ctx, inputs, output):
    x, position, bias, qkv_weight, qkv_bias, weight, _, gamma, beta, _, *rest = inputs
    *ctx.rest, ctx.saves = rest
    ctx.present = [t is not None for t in inputs[:9]]
    tensors = (x, position, bias, qkv_weight, qkv_bias, weight, gamma, beta)
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _attention_backward(ctx, grad, *_):
    if grad is None:  # as above
        return (None,) * 14
    _check_saved(ctx)
    grads = iter(fused_attention_backward(grad, *ctx.saved_tensors, *ctx.rest))
    return *(next(grads) if there else None for there in ctx.present), *([None] * 5)


fused_attention.register_autograd(_attention_backward, setup_context=_attention_setup)


@register_flop_formula(torch.ops.contnet_mm.fused_mlp)
def _mlp_flops(x_shape, w1_shape, *_, **__) -> int:
    return 4 * x_shape[0] * w1_shape[0] * w1_shape[1]


@register_flop_formula(torch.ops.contnet_mm.fused_mlp_backward)
def _mlp_backward_flops(grad_shape, x_shape, w1_shape, *_, **__) -> int:
    return (
        14 * x_shape[0] * w1_shape[0] * w1_shape[1]
    )  # seven products: two are computed in both kernels


def _pairs(shape: tuple[int, ...], side: int) -> int:
    """Return the number of pairs of query and key in the windows of a map, [B, H, W, C]."""
    batch, height, width, _ = shape

    def squares(length: int) -> int:  # summed over the bands that windows cut a length into
        return length // side * side**2 + (length % side) ** 2

    return batch * squares(height) * squares(width)


@register_flop_formula(torch.ops.contnet_mm.fused_attention)
def _attention_flops(x_shape, *args, **__) -> int:
    *_, side, _, _, _ = args
    batch, height, width, channels = x_shape
    return 8 * batch * height * width * channels**2 + 4 * _pairs(x_shape, side) * channels


@register_flop_formula(torch.ops.contnet_mm.fused_attention_backward)
def _attention_backward_flops(grad_shape, x_shape, *args, **__) -> int:
    *_, side, _, _ = args
    batch, height, width, channels = x_shape
    linear = 22 * batch * height * width * channels**2  # q, k and v once more, and all gradients
    return linear + 10 * _pairs(x_shape, side) * channels
