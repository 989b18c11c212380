"""Triton kernels of the feed-forward half of an encoder: hidden activations stay on the chip.

A program takes some tokens through both linear layers, a few hidden channels at a time. Sums,
statistics and products are kept in float32; what goes into a product has the dtype of the tokens.
Shapes: T tokens, C channels, M hidden channels. Nothing in here has run on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from contnet_mm.models.kernels.tiles import (
    block_of,
    load_rows,
    load_vector,
    normalise,
    product,
    splits,
    statistics,
    store_rows,
)

SQRT_HALF = tl.constexpr(0.7071067811865476)
SQRT_HALF_OVER_PI = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 * pi)


@triton.jit
def gelu(x):
    """Weigh x by the probability that a standard normal variable is less."""
    return 0.5 * x * (1 + tl.erf(x * SQRT_HALF))


@triton.jit
def gelu_slope(x):
    """Derivative of :func:`gelu`."""
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
    """Input of the first linear layer."""
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
    """Gradient of the first layer's input; without pre-norm that of the residual is added."""
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
    """A share of the tokens' part in the gradients of some hidden channels' weights."""
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


def forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    pre_norm: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute ``norm(x + w2 @ gelu(w1 @ x + b1) + b2)``, or ``x + ... norm(x) ...`` if pre-norm.

    Args:
        x: Tokens, [T, C], row by row in memory, as all others.
        w1: Weight of the first layer, [M, C], of the dtype of ``x``.
        b1: Bias, [M].
        w2: Weight of the second layer, [C, M], of the dtype of ``x``.
        b2: Bias, [C].
        gamma: Scale of the norm, [C].
        beta: Shift of the norm, [C].
        eps: Added to the variance.
        pre_norm: Normalise the input of the layers instead of the sum.
        save: Whether a backward pass is to follow.

    Returns:
        Tokens, [T, C]; what is normalised, [T, C], if it is the sum and saved; its mean and
        reciprocal deviation, [T] each, in float32, if saved. What is not there is empty.
    """
    tokens, channels = x.shape
    tiles = _tiles(channels, x.dtype)
    out = torch.empty_like(x)
    total = torch.empty_like(x) if save and not pre_norm else x.new_empty(0, channels)
    mean = x.new_empty(tokens if save else 0, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if tokens:
        _forward[(triton.cdiv(tokens, tiles['BLOCK_T']),)](
            x, w1, b1, w2, b2, gamma, beta, out, total, mean, rstd, tokens, eps,
            C=channels, M=len(w1), PRE_NORM=pre_norm, SAVE=save, **tiles,
        )  # fmt: skip
    return out, total, mean, rstd


def backward(
    grad: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    rstd: Tensor,
    pre_norm: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the two layers of :func:`forward`, which computes hidden activations again.

    Args:
        grad: Of the sum, [T, C].
        x: As there, like all that follow.
        w1: As there.
        b1: As there.
        w2: As there.
        gamma: As there.
        beta: As there.
        mean: As returned there.
        rstd: As returned there.
        pre_norm: As there.

    Returns:
        Gradients of the input of the first layer, with that of the residual unless pre-norm,
        [T, C]; of ``w1``, ``b1`` and ``w2``, in float32.
    """
    tokens, channels = x.shape
    hidden = len(w1)
    tiles = _tiles(channels, x.dtype)
    x_grad = torch.empty_like(x)
    if not tokens:
        zeros = w1.new_zeros(hidden, channels, dtype=torch.float32)
        return x_grad, zeros, zeros[:, 0].clone(), zeros.t().contiguous()
    shared = (x, w1, b1, w2, gamma, beta, mean, rstd, grad)
    sizes = dict(C=channels, M=hidden, PRE_NORM=pre_norm, **tiles)
    number = triton.cdiv(tokens, tiles['BLOCK_T'])
    _backward_tokens[(number,)](*shared, x_grad, tokens, **sizes)

    # Each program adds up a share of the tokens; the shares are added up in a fixed order.
    chunks = triton.cdiv(hidden, tiles['BLOCK_M'])
    shares, length = splits(number, chunks)
    w1_grad, w2_grad = x.new_empty(2, shares, hidden, channels, dtype=torch.float32)
    b1_grad = x.new_empty(shares, hidden, dtype=torch.float32)
    grid = (chunks, shares)
    _backward_weights[grid](*shared, w1_grad, b1_grad, w2_grad, tokens, length, **sizes)
    return x_grad, w1_grad.sum(0), b1_grad.sum(0), w2_grad.sum(0).t()
