"""Triton kernels of the feed-forward half of an encoder: hidden activations stay on the chip.

A program takes some tokens through both linear layers, a few hidden channels at a time. Sums,
statistics and products are kept in float32; what goes into a product has the dtype of the tokens.
Shapes: T tokens, C channels, M hidden channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from contnet_mm.models.kernels import norm
from contnet_mm.models.kernels.common import (
    block_of,
    load_rows,
    load_vector,
    new_outputs,
    normalise,
    on_device_of,
    product,
    register_gradient,
    splits,
    statistics,
    store_rows,
)

SQRT_HALF = tl.constexpr(0.7071067811865476)
SQRT_HALF_OVER_PI = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 * pi)


@triton.jit
def gelu(x):
    """Multiply x by the probability that a standard normal variable is less."""
    return 0.5 * x * (1 + tl.erf(x * SQRT_HALF))


@triton.jit
def gelu_slope(x):
    """Compute the derivative of :func:`gelu`."""
    return 0.5 * (1 + tl.erf(x * SQRT_HALF)) + x * SQRT_HALF_OVER_PI * tl.exp(-0.5 * x * x)


@triton.jit(do_not_specialize=['tokens'])
def _forward(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, gamma_ptr, beta_ptr,
    out_ptr, sum_ptr, mean_ptr, rstd_ptr, tokens, eps,
    C: tl.constexpr, M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr, PRE_NORM: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    row_mask = rows < tokens
    columns = tl.arange(0, BLOCK_C)
    x = load_rows(x_ptr, rows, row_mask, columns, C)
    dtype = x.dtype
    gamma, beta = load_vector(gamma_ptr, columns, C), load_vector(beta_ptr, columns, C)
    total = x.to(tl.float32)
    y = x
    if PRE_NORM:
        mean, rstd = statistics(total, columns, C, eps)
        y = normalise(total, mean, rstd, gamma, beta).to(dtype)
    total += load_vector(b2_ptr, columns, C)[None]
    for first in range(0, M, BLOCK_M):
        hidden = first + tl.arange(0, BLOCK_M)
        w1 = load_rows(w1_ptr, hidden, hidden < M, columns, C)
        h = product(y, tl.trans(w1)) + load_vector(b1_ptr, hidden, M)[None]
        w2 = load_rows(w2_ptr, columns, columns < C, hidden, M)
        total += product(gelu(h).to(dtype), tl.trans(w2))
    if PRE_NORM:
        out = total
    else:
        mean, rstd = statistics(total, columns, C, eps)
        out = normalise(total, mean, rstd, gamma, beta)
        if SAVE:
            store_rows(sum_ptr, total.to(dtype), rows, row_mask, columns, C)
    store_rows(out_ptr, out.to(dtype), rows, row_mask, columns, C)
    if SAVE:
        tl.store(mean_ptr + rows, mean, row_mask)
        tl.store(rstd_ptr + rows, rstd, row_mask)


@triton.jit
def _load_y(
    x_ptr, gamma_ptr, beta_ptr, mean_ptr, rstd_ptr, rows, row_mask, columns,
    C: tl.constexpr, PRE_NORM: tl.constexpr,
):  # fmt: skip
    """Load the input of the first linear layer."""
    x = load_rows(x_ptr, rows, row_mask, columns, C)
    if PRE_NORM:
        mean = tl.load(mean_ptr + rows, row_mask, other=0.0)
        rstd = tl.load(rstd_ptr + rows, row_mask, other=0.0)
        gamma, beta = load_vector(gamma_ptr, columns, C), load_vector(beta_ptr, columns, C)
        x = normalise(x.to(tl.float32), mean, rstd, gamma, beta).to(x.dtype)
    return x


@triton.jit(do_not_specialize=['tokens'])
def _backward_tokens(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, gamma_ptr, beta_ptr, mean_ptr, rstd_ptr, grad_ptr,
    out_ptr, tokens,
    C: tl.constexpr, M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr, PRE_NORM: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the first layer's input; post-norm adds that of the residual."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    row_mask = rows < tokens
    columns = tl.arange(0, BLOCK_C)
    y = _load_y(
        x_ptr, gamma_ptr, beta_ptr, mean_ptr, rstd_ptr, rows, row_mask, columns, C, PRE_NORM
    )
    grad = load_rows(grad_ptr, rows, row_mask, columns, C)
    total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    if not PRE_NORM:
        total += grad.to(tl.float32)
    for first in range(0, M, BLOCK_M):
        hidden = first + tl.arange(0, BLOCK_M)
        w1 = load_rows(w1_ptr, hidden, hidden < M, columns, C)
        w2 = load_rows(w2_ptr, columns, columns < C, hidden, M)
        h = product(y, tl.trans(w1)) + load_vector(b1_ptr, hidden, M)[None]
        h_grad = product(grad, w2) * gelu_slope(h)
        total += product(h_grad.to(y.dtype), w1)
    store_rows(out_ptr, total.to(y.dtype), rows, row_mask, columns, C)


@triton.jit(do_not_specialize=['tokens', 'tiles_per_split'])
def _backward_weights(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, gamma_ptr, beta_ptr, mean_ptr, rstd_ptr, grad_ptr,
    w1_out, b1_out, w2_out, tokens, tiles_per_split,
    C: tl.constexpr, M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr, PRE_NORM: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of some hidden channels' weights over one split of the tokens."""
    hidden = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(1)
    columns = tl.arange(0, BLOCK_C)
    w1 = load_rows(w1_ptr, hidden, hidden < M, columns, C)
    w2 = load_rows(w2_ptr, columns, columns < C, hidden, M)
    b1 = load_vector(b1_ptr, hidden, M)
    w1_grad = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    w2_grad = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    b1_grad = tl.zeros([BLOCK_M], tl.float32)
    for tile in range(split * tiles_per_split, (split + 1) * tiles_per_split):
        rows = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        row_mask = rows < tokens
        y = _load_y(
            x_ptr, gamma_ptr, beta_ptr, mean_ptr, rstd_ptr, rows, row_mask, columns, C, PRE_NORM
        )
        grad = load_rows(grad_ptr, rows, row_mask, columns, C)  # 0 where there is no token
        h = product(y, tl.trans(w1)) + b1[None]
        h_grad = product(grad, w2) * gelu_slope(h)
        b1_grad += tl.sum(h_grad, axis=0)
        w1_grad += product(tl.trans(h_grad.to(y.dtype)), y)
        w2_grad += product(tl.trans(gelu(h).to(y.dtype)), grad)
    rows, row_mask = split * M + hidden, hidden < M
    store_rows(w1_out, w1_grad, rows, row_mask, columns, C)
    store_rows(w2_out, w2_grad, rows, row_mask, columns, C)
    tl.store(b1_out + rows, b1_grad, row_mask)


def _tiles(channels: int, dtype: torch.dtype) -> dict:
    block_c = block_of(channels)
    # What a program holds of tokens and of weights is bounded by the registers of an SM.
    block = min(32 if dtype == torch.float32 else 64, max(16, 8192 // block_c))
    return dict(
        BLOCK_C=block_c,
        BLOCK_M=block,
        BLOCK_T=block,
        num_warps=4 if block_c <= 128 else 8,
        num_stages=1 if dtype == torch.float32 else 2,
    )


@torch.library.custom_op('contnet_mm::fused_mlp', mutates_args=())
def fused_mlp(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor, beta: Tensor,
    eps: float, pre_norm: bool, save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute ``norm(x + w2 @ gelu(w1 @ x + b1) + b2)``, or ``x + ... norm(x) ...`` if pre-norm.

    Arguments are those of :func:`contnet_mm.models.kernels.encoder.feed_forward`, with tokens,
    [T, C], instead of a map; weights have their dtype. Returned is what
    :func:`~contnet_mm.models.kernels.common.new_outputs` allocates.
    """
    inputs = [t.contiguous() for t in (x, w1, b1, w2, b2, gamma, beta)]
    outputs = new_outputs(x, pre_norm, save_for_backward)
    tokens, channels = x.shape
    tiles = _tiles(channels, x.dtype)
    if tokens:
        with on_device_of(x):
            _forward[(triton.cdiv(tokens, tiles['BLOCK_T']),)](
                *inputs, *outputs, tokens, eps,
                C=channels, M=len(w1), PRE_NORM=pre_norm, SAVE=save_for_backward, **tiles,
            )  # fmt: skip
    return outputs


@fused_mlp.register_fake
def _(x, w1, b1, w2, b2, gamma, beta, eps, pre_norm, save_for_backward):
    return new_outputs(x, pre_norm, save_for_backward)


@torch.library.custom_op('contnet_mm::fused_mlp_backward', mutates_args=())
def fused_mlp_backward(
    grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, gamma: Tensor, beta: Tensor,
    total: Tensor, mean: Tensor, rstd: Tensor, pre_norm: bool,
) -> list[Tensor]:  # fmt: skip
    """Compute the gradients of the tensors of :func:`fused_mlp`, in their order.

    Hidden activations are computed again. ``total``, ``mean`` and ``rstd`` are as returned there.
    """
    grad, x, w1, b1, w2, gamma, beta = (t.contiguous() for t in (grad, x, w1, b1, w2, gamma, beta))
    tokens, channels = x.shape
    hidden = len(w1)
    tiles = _tiles(channels, x.dtype)
    # Each program sums over a share of the tokens; the shares are added in a fixed order.
    number, chunks = triton.cdiv(tokens, tiles['BLOCK_T']), triton.cdiv(hidden, tiles['BLOCK_M'])
    shares, length = splits(number, chunks)
    x_grad = torch.empty_like(x)
    w1_grad, w2_grad = x.new_empty(2, shares, hidden, channels, dtype=torch.float32)
    b1_grad = x.new_empty(shares, hidden, dtype=torch.float32)
    with on_device_of(x):
        sum_grad = grad
        if not pre_norm:
            sum_grad, *norm_grads = norm.backward(grad, total, mean, rstd, gamma, beta)
        if tokens:
            inputs = (x, w1, b1, w2, gamma, beta, mean, rstd, sum_grad)
            sizes = dict(C=channels, M=hidden, PRE_NORM=pre_norm, **tiles)
            _backward_tokens[(number,)](*inputs, x_grad, tokens, **sizes)
            _backward_weights[(chunks, shares)](
                *inputs, w1_grad, b1_grad, w2_grad, tokens, length, **sizes
            )
        if pre_norm:
            y_grad, *norm_grads = norm.backward(x_grad, x, mean, rstd, gamma, beta)
            x_grad = y_grad + grad
    return [
        x_grad,
        w1_grad.sum(0).to(w1.dtype),
        b1_grad.sum(0).to(b1.dtype),
        w2_grad.sum(0).t().to(w2.dtype).contiguous(),
        sum_grad.sum(0, dtype=torch.float32).to(b1.dtype),  # that of b2, which is not here
        *norm_grads,
    ]


@fused_mlp_backward.register_fake
def _(grad, x, w1, b1, w2, gamma, beta, *_):
    shapes = [t.new_empty(t.shape) for t in (x, w1, b1, w2, gamma, beta)]
    return [*shapes[:4], b1.new_empty(x.shape[1]), *shapes[4:]]


register_gradient(fused_mlp, fused_mlp_backward, num_tensors=7)


@register_flop_formula(torch.ops.contnet_mm.fused_mlp)
def _flops(x_shape, w1_shape, *_, **__) -> int:
    return 4 * x_shape[0] * w1_shape[0] * w1_shape[1]


@register_flop_formula(torch.ops.contnet_mm.fused_mlp_backward)
def _flops_backward(grad_shape, x_shape, w1_shape, *_, **__) -> int:
    # Seven products: two are computed in both kernels.
    return 14 * x_shape[0] * w1_shape[0] * w1_shape[1]
