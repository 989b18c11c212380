"""Triton kernels of the attention half of an encoder: windows are read straight from the map.

A program takes a whole window from its tokens to the result: position, queries, keys and values,
attention, projection, residual and norm. Queries, keys, values and attention weights never leave
the chip; what the heads mix passes through memory between the heads and the projection, unless
there is one head. Windows are masked where they reach over the border. Shapes: B batch, H x W map,
C channels, T = B * H * W tokens in the order of the map, p the side of a window, P = p * p. Nothing
in here has run on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from contnet_mm.models.kernels.tiles import (
    PROGRAMS,
    block_of,
    load_rows,
    load_vector,
    normalise,
    product,
    statistics,
    store_rows,
)


@triton.jit
def _window(number, rows, columns, SIDE: tl.constexpr):
    """Image, top and left of a window; there are rows x columns of them in an image."""
    image = number // (rows * columns)
    rest = number % (rows * columns)
    return image, rest // columns * SIDE, rest % columns * SIDE


@triton.jit
def _tokens(place, image, top, left, height, width, SIDE: tl.constexpr):
    """Where in the map the tokens of a window are, and which of them there are."""
    y, x = top + place // SIDE, left + place % SIDE
    inside = (place < SIDE * SIDE) & (y < height) & (x < width)
    return (image.to(tl.int64) * height + y) * width + x, inside


@triton.jit
def _load_x(x_ptr, position_ptr, token, place, inside, columns, C: tl.constexpr):
    """Some channels of the tokens of a window, with their positions."""
    x = load_rows(x_ptr, token, inside, columns, C)
    if position_ptr is not None:
        position = load_rows(position_ptr, place, inside, columns, C)
        x = (x.to(tl.float32) + position.to(tl.float32)).to(x.dtype)
    return x


@triton.jit
def _statistics(
    x_ptr, position_ptr, token, place, inside, eps,
    C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Mean and reciprocal deviation of tokens that are too wide to be held at once."""
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, C, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K)
        x = _load_x(x_ptr, position_ptr, token, place, inside, columns, C)
        total += tl.sum(x.to(tl.float32), axis=1)
    mean = total / C
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, C, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K)
        x = _load_x(x_ptr, position_ptr, token, place, inside, columns, C)
        centred = tl.where((columns < C)[None], x.to(tl.float32) - mean[:, None], 0.0)
        total += tl.sum(centred * centred, axis=1)
    return mean, tl.rsqrt(total / C + eps)


@triton.jit
def _project(
    x_ptr, position_ptr, weight_ptr, bias_ptr, gamma_ptr, beta_ptr, mean, rstd,
    token, place, inside, first_row,
    C: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr, PRE_NORM: tl.constexpr,
):  # fmt: skip
    """Queries, keys or values of a head, [BLOCK_N, BLOCK_D], from the rows of the weight."""
    depth = tl.arange(0, BLOCK_D)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, C, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K)
        y = _load_x(x_ptr, position_ptr, token, place, inside, columns, C)
        if PRE_NORM:
            gamma, beta = load_vector(gamma_ptr, columns, C), load_vector(beta_ptr, columns, C)
            y = normalise(y.to(tl.float32), mean, rstd, gamma, beta).to(dtype)
        weight = load_rows(weight_ptr, first_row + depth, depth < D, columns, C)
        total += product(y, tl.trans(weight))
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + first_row + depth, depth < D, other=0.0)
        total += bias.to(tl.float32)[None]
    return total.to(dtype)


@triton.jit
def _weights(q, k, bias_ptr, head, query, query_inside, key, key_inside, scale, SIDE: tl.constexpr):
    """Attention weights in float32; keys that are not there get none."""
    logits = product(q, tl.trans(k)) * scale
    if bias_ptr is not None:
        P: tl.constexpr = SIDE * SIDE
        bias = load_rows(bias_ptr + head * P * P, query, query_inside, key, P)
        logits += bias.to(tl.float32)
    logits = tl.where(key_inside[None], logits, float('-inf'))
    weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def _finish(
    total, x_ptr, position_ptr, bias_ptr, gamma_ptr, beta_ptr, out_ptr, sum_ptr, mean_ptr, rstd_ptr,
    token, place, inside, columns, eps,
    C: tl.constexpr, PRE_NORM: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Bias, residual and norm of what was projected."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    total += load_vector(bias_ptr, columns, C)[None]
    total += _load_x(x_ptr, position_ptr, token, place, inside, columns, C).to(tl.float32)
    if not PRE_NORM:
        if SAVE:
            store_rows(sum_ptr, total.to(dtype), token, inside, columns, C)
        mean, rstd = statistics(total, columns, C, eps)
        gamma, beta = load_vector(gamma_ptr, columns, C), load_vector(beta_ptr, columns, C)
        total = normalise(total, mean, rstd, gamma, beta)
        if SAVE:
            tl.store(mean_ptr + token, mean, inside)
            tl.store(rstd_ptr + token, rstd, inside)
    store_rows(out_ptr, total.to(dtype), token, inside, columns, C)


@triton.jit(do_not_specialize=['height', 'width', 'rows', 'row_length'])
def _forward(
    x_ptr, position_ptr, bias_ptr, qkv_weight_ptr, qkv_bias_ptr, weight_ptr, proj_bias_ptr,
    gamma_ptr, beta_ptr, out_ptr, mixed_ptr, sum_ptr, mean_ptr, rstd_ptr,
    height, width, rows, row_length, scale, eps,
    C: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, SIDE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, PRE_NORM: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    image, top, left = _window(tl.program_id(0), rows, row_length, SIDE)
    key = tl.arange(0, BLOCK_N)
    key_token, key_inside = _tokens(key, image, top, left, height, width, SIDE)
    columns, depth = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    key_mean, key_rstd = None, None
    if PRE_NORM:
        key_mean, key_rstd = _statistics(
            x_ptr, position_ptr, key_token, key, key_inside, eps, C, BLOCK_N, BLOCK_K
        )
        if SAVE:
            tl.store(mean_ptr + key_token, key_mean, key_inside)
            tl.store(rstd_ptr + key_token, key_rstd, key_inside)
    for head in range(HEADS):
        k = _project(
            x_ptr, position_ptr, qkv_weight_ptr, qkv_bias_ptr, gamma_ptr, beta_ptr,
            key_mean, key_rstd, key_token, key, key_inside, C + head * D,
            C, D, BLOCK_N, BLOCK_D, BLOCK_K, PRE_NORM,
        )  # fmt: skip
        v = _project(
            x_ptr, position_ptr, qkv_weight_ptr, qkv_bias_ptr, gamma_ptr, beta_ptr,
            key_mean, key_rstd, key_token, key, key_inside, 2 * C + head * D,
            C, D, BLOCK_N, BLOCK_D, BLOCK_K, PRE_NORM,
        )  # fmt: skip
        for first in range(0, SIDE * SIDE, BLOCK_Q):
            query = first + tl.arange(0, BLOCK_Q)
            token, inside = _tokens(query, image, top, left, height, width, SIDE)
            mean, rstd = None, None
            if PRE_NORM:
                mean, rstd = _statistics(
                    x_ptr, position_ptr, token, query, inside, eps, C, BLOCK_Q, BLOCK_K
                )
            q = _project(
                x_ptr, position_ptr, qkv_weight_ptr, qkv_bias_ptr, gamma_ptr, beta_ptr,
                mean, rstd, token, query, inside, head * D,
                C, D, BLOCK_Q, BLOCK_D, BLOCK_K, PRE_NORM,
            )  # fmt: skip
            p = _weights(q, k, bias_ptr, head, query, inside, key, key_inside, scale, SIDE)
            mixed = product(p.to(v.dtype), v).to(v.dtype)
            if SAVE or HEADS > 1:
                store_rows(mixed_ptr, mixed, token * HEADS + head, inside, depth, D)
            if HEADS == 1:
                weight = load_rows(weight_ptr, columns, columns < C, depth, D)
                _finish(
                    product(mixed, tl.trans(weight)), x_ptr, position_ptr, proj_bias_ptr,
                    gamma_ptr, beta_ptr, out_ptr, sum_ptr, mean_ptr, rstd_ptr,
                    token, query, inside, columns, eps, C, PRE_NORM, SAVE,
                )  # fmt: skip
    if HEADS > 1:
        tl.debug_barrier()  # what one thread has stored another one loads
        for first in range(0, SIDE * SIDE, BLOCK_P):
            query = first + tl.arange(0, BLOCK_P)
            token, inside = _tokens(query, image, top, left, height, width, SIDE)
            total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
            for head in range(HEADS):
                mixed = load_rows(mixed_ptr, token * HEADS + head, inside, depth, D)
                weight = load_rows(weight_ptr, columns * HEADS + head, columns < C, depth, D)
                total += product(mixed, tl.trans(weight))
            _finish(
                total, x_ptr, position_ptr, proj_bias_ptr, gamma_ptr, beta_ptr,
                out_ptr, sum_ptr, mean_ptr, rstd_ptr,
                token, query, inside, columns, eps, C, PRE_NORM, SAVE,
            )  # fmt: skip


@triton.jit(do_not_specialize=['height', 'width', 'rows', 'row_length', 'windows'])
def _backward(
    qkv_ptr, bias_ptr, grad_ptr, qkv_grad_ptr, bias_grad_ptr,
    height, width, rows, row_length, windows, scale,
    HEADS: tl.constexpr, D: tl.constexpr, SIDE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Gradients of queries, keys and values of a head, and a share of that of the bias."""
    head = tl.program_id(1)
    key, depth = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    P: tl.constexpr = SIDE * SIDE
    for number in range(tl.program_id(0), windows, tl.num_programs(0)):
        image, top, left = _window(number, rows, row_length, SIDE)
        key_token, key_inside = _tokens(key, image, top, left, height, width, SIDE)
        # Rows of D channels: those of a token's queries, its keys and its values.
        key_row = key_token * (3 * HEADS) + HEADS + head
        value_row = key_row + HEADS
        k = load_rows(qkv_ptr, key_row, key_inside, depth, D)
        v = load_rows(qkv_ptr, value_row, key_inside, depth, D)
        k_grad = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        v_grad = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for first in range(0, P, BLOCK_Q):
            query = first + tl.arange(0, BLOCK_Q)
            token, inside = _tokens(query, image, top, left, height, width, SIDE)
            q = load_rows(qkv_ptr, token * (3 * HEADS) + head, inside, depth, D)
            grad = load_rows(grad_ptr, token * HEADS + head, inside, depth, D)
            p = _weights(q, k, bias_ptr, head, query, inside, key, key_inside, scale, SIDE)
            v_grad += product(tl.trans(p.to(v.dtype)), grad)
            p_grad = product(grad, tl.trans(v))  # 0 where there is no query
            logits_grad = p * (p_grad - tl.sum(p * p_grad, axis=1)[:, None])
            if bias_grad_ptr is not None:
                # Programs have a gradient each, so that none waits and the sum has one order.
                share = bias_grad_ptr + (tl.program_id(0) * HEADS + head).to(tl.int64) * P * P
                logits_sum = load_rows(share, query, inside, key, P) + logits_grad
                store_rows(share, logits_sum, query, inside, key, P)
                tl.debug_barrier()  # the next window's threads load what these have stored
            logits_grad = logits_grad.to(v.dtype)
            q_grad = product(logits_grad, k) * scale
            k_grad += product(tl.trans(logits_grad), q) * scale
            row = token * (3 * HEADS) + head
            store_rows(qkv_grad_ptr, q_grad.to(v.dtype), row, inside, depth, D)
        store_rows(qkv_grad_ptr, k_grad.to(v.dtype), key_row, key_inside, depth, D)
        store_rows(qkv_grad_ptr, v_grad.to(v.dtype), value_row, key_inside, depth, D)


def _tiles(depth: int, side: int, dtype: torch.dtype, backward: bool) -> dict:
    block_n = block_of(side * side)
    # Queries at a time: as many as leave room for the weights of all keys, and in the backward pass
    # for their gradients.
    block_q = 64 if block_n <= 64 else 32 if backward else 64
    if dtype == torch.float32:
        block_q = 16 if block_n > 64 else 32
    return dict(
        BLOCK_D=block_of(depth),
        BLOCK_N=block_n,
        BLOCK_Q=min(block_q, block_n),
        num_warps=4 if block_n <= 64 else 8,
        num_stages=1 if backward or dtype == torch.float32 else 2,
    )


def forward(
    x: Tensor,
    position: Tensor | None,
    bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    weight: Tensor,
    proj_bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    side: int,
    num_heads: int,
    pre_norm: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute ``norm(x' + proj(attend(x')))``, or ``x' + ... norm(x') ...`` if pre-norm.

    Args:
        x: Map, [B, H, W, C], token by token in memory; x' has positions added.
        position: To add to the tokens by place, row by row, [P, C], or None.
        bias: Of the logits by place of query and key, [heads, P, P], or None.
        qkv_weight: Of the projection to q, k and v, [3 * C, C], of the dtype of ``x``.
        qkv_bias: Its bias, [3 * C], or None.
        weight: Of the projection of the result, [C, C], of the dtype of ``x``.
        proj_bias: Its bias, [C].
        gamma: Scale of the norm, [C].
        beta: Shift of the norm, [C].
        eps: Added to the variance.
        side: Side p of a window in tokens.
        num_heads: Number of heads; divides C.
        pre_norm: Normalise the input of the attention instead of the sum.
        save: Whether a backward pass is to follow.

    Returns:
        Map, [B, H, W, C]; mixed values before their projection, [T, C]; what is normalised, [T, C],
        if it is the sum and saved; its mean and reciprocal deviation, [T] each, in float32, if
        saved. What is not there is empty.
    """
    batch, height, width, channels = x.shape
    tokens = batch * height * width
    depth = channels // num_heads
    block_c = block_of(channels)
    out = torch.empty_like(x)
    mixed = x.new_empty(tokens if save or num_heads > 1 else 0, channels)
    total = x.new_empty(tokens if save and not pre_norm else 0, channels)
    mean = x.new_empty(tokens if save else 0, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    rows, row_length = triton.cdiv(height, side), triton.cdiv(width, side)
    if tokens:
        _forward[(batch * rows * row_length,)](
            x, position, bias, qkv_weight, qkv_bias, weight, proj_bias, gamma, beta,
            out, mixed, total, mean, rstd, height, width, rows, row_length, depth**-0.5, eps,
            C=channels, HEADS=num_heads, D=depth, SIDE=side, BLOCK_C=block_c,
            BLOCK_K=min(32, block_c), BLOCK_P=min(64, max(16, 8192 // block_c)),
            PRE_NORM=pre_norm, SAVE=save, **_tiles(depth, side, x.dtype, False),
        )  # fmt: skip
    return out, mixed, total, mean, rstd


def backward(
    grad: Tensor, qkv: Tensor, bias: Tensor | None, height: int, width: int, side: int, heads: int
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the attention itself, whose weights are computed again.

    Args:
        grad: Of the mixed values, [T, C].
        qkv: Queries, keys and values, [T, 3 * C].
        bias: Of the logits by place, [heads, P, P], or None.
        height: Of the map in tokens.
        width: Of the map in tokens.
        side: Side p of a window in tokens.
        heads: Number of heads.

    Returns:
        Gradients of ``qkv``, [T, 3 * C], and of ``bias``, [heads, P, P] in float32, or None.
    """
    tokens, channels = grad.shape
    depth = channels // heads
    rows, row_length = triton.cdiv(height, side), triton.cdiv(width, side)
    windows = tokens // max(1, height * width) * rows * row_length
    qkv_grad = torch.empty_like(qkv)
    programs, bias_grad = windows, None
    if bias is not None:
        programs = min(windows, max(1, PROGRAMS // heads))
        bias_grad = qkv.new_zeros(programs, *bias.shape, dtype=torch.float32)
    if tokens:
        _backward[(programs, heads)](
            qkv, bias, grad, qkv_grad, bias_grad, height, width, rows, row_length, windows,
            depth**-0.5, HEADS=heads, D=depth, SIDE=side, **_tiles(depth, side, qkv.dtype, True),
        )  # fmt: skip
    return qkv_grad, None if bias_grad is None else bias_grad.sum(0)
