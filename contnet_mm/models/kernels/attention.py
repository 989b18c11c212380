"""Triton kernels of the attention half of an encoder: windows are read straight from the map.

A program takes a whole window from its tokens to the result: position, queries, keys and values,
attention, projection, residual and norm. Queries, keys, values and attention weights never leave
the chip; what attention returns goes through memory between the heads and the projection, unless
there is one head. Windows are masked where they reach over the border. Shapes: B images, H x W map,
C channels, T = B * H * W tokens in the order of the map, P = window_size ** 2 tokens of a window.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from contnet_mm.models.kernels import norm
from contnet_mm.models.kernels.common import (
    PROGRAMS,
    block_of,
    load_rows,
    load_vector,
    new_outputs,
    normalise,
    on_device_of,
    product,
    register_gradient,
    statistics,
    store_rows,
)


@triton.jit
def _window(number, rows, columns, WINDOW_SIZE: tl.constexpr):
    """Locate a window, of which an image has rows x columns: its image, top and left."""
    image = number // (rows * columns)
    rest = number % (rows * columns)
    return image, rest // columns * WINDOW_SIZE, rest % columns * WINDOW_SIZE


@triton.jit
def _tokens(index, image, top, left, height, width, WINDOW_SIZE: tl.constexpr):
    """Locate the tokens of a window in the map, and tell which of them exist."""
    y, x = top + index // WINDOW_SIZE, left + index % WINDOW_SIZE
    inside = (index < WINDOW_SIZE * WINDOW_SIZE) & (y < height) & (x < width)
    return (image.to(tl.int64) * height + y) * width + x, inside


@triton.jit
def _load_x(x_ptr, position_ptr, token, index, inside, columns, C: tl.constexpr):
    """Load some channels of the tokens of a window, with their positions added."""
    x = load_rows(x_ptr, token, inside, columns, C)
    if position_ptr is not None:
        position = load_rows(position_ptr, index, inside, columns, C)
        x = (x.to(tl.float32) + position.to(tl.float32)).to(x.dtype)
    return x


@triton.jit
def _statistics(
    x_ptr, position_ptr, token, index, inside, eps,
    C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute mean and reciprocal deviation of tokens that are too wide to be held at once."""
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, C, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K)
        x = _load_x(x_ptr, position_ptr, token, index, inside, columns, C)
        total += tl.sum(x.to(tl.float32), axis=1)
    mean = total / C
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, C, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K)
        x = _load_x(x_ptr, position_ptr, token, index, inside, columns, C)
        centred = tl.where((columns < C)[None], x.to(tl.float32) - mean[:, None], 0.0)
        total += tl.sum(centred * centred, axis=1)
    return mean, tl.rsqrt(total / C + eps)


@triton.jit
def _project(
    x_ptr, position_ptr, weight_ptr, bias_ptr, gamma_ptr, beta_ptr, mean, rstd,
    token, index, inside, first_row,
    C: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr, PRE_NORM: tl.constexpr,
):  # fmt: skip
    """Compute queries, keys or values of a head, [BLOCK_N, BLOCK_D], by rows of the weight."""
    head_columns = tl.arange(0, BLOCK_D)
    rows = first_row + head_columns
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, C, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K)
        y = _load_x(x_ptr, position_ptr, token, index, inside, columns, C)
        if PRE_NORM:
            gamma, beta = load_vector(gamma_ptr, columns, C), load_vector(beta_ptr, columns, C)
            y = normalise(y.to(tl.float32), mean, rstd, gamma, beta).to(dtype)
        weight = load_rows(weight_ptr, rows, head_columns < HEAD_DIM, columns, C)
        total += product(y, tl.trans(weight))
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + rows, head_columns < HEAD_DIM, other=0.0)
        total += bias.to(tl.float32)[None]
    return total.to(dtype)


@triton.jit
def _weights(
    q, k, bias_ptr, head, query, query_inside, key, key_inside, scale, WINDOW_SIZE: tl.constexpr
):
    """Compute attention weights in float32; keys that do not exist get none."""
    logits = product(q, tl.trans(k)) * scale
    if bias_ptr is not None:
        P: tl.constexpr = WINDOW_SIZE * WINDOW_SIZE
        bias = load_rows(bias_ptr + head * P * P, query, query_inside, key, P)
        logits += bias.to(tl.float32)
    logits = tl.where(key_inside[None], logits, float('-inf'))
    weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def _finish(
    total, x_ptr, position_ptr, bias_ptr, gamma_ptr, beta_ptr,
    out_ptr, total_ptr, mean_ptr, rstd_ptr, token, index, inside, columns, eps,
    C: tl.constexpr, PRE_NORM: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Add bias and residual to what was projected, normalise and store it."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    total += load_vector(bias_ptr, columns, C)[None]
    total += _load_x(x_ptr, position_ptr, token, index, inside, columns, C).to(tl.float32)
    if not PRE_NORM:
        if SAVE:
            store_rows(total_ptr, total.to(dtype), token, inside, columns, C)
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
    gamma_ptr, beta_ptr, out_ptr, attn_out_ptr, total_ptr, mean_ptr, rstd_ptr,
    height, width, rows, row_length, scale, eps,
    C: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW_SIZE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, PRE_NORM: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    image, top, left = _window(tl.program_id(0), rows, row_length, WINDOW_SIZE)
    key = tl.arange(0, BLOCK_N)
    key_token, key_inside = _tokens(key, image, top, left, height, width, WINDOW_SIZE)
    columns, head_columns = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
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
            key_mean, key_rstd, key_token, key, key_inside, C + head * HEAD_DIM,
            C, HEAD_DIM, BLOCK_N, BLOCK_D, BLOCK_K, PRE_NORM,
        )  # fmt: skip
        v = _project(
            x_ptr, position_ptr, qkv_weight_ptr, qkv_bias_ptr, gamma_ptr, beta_ptr,
            key_mean, key_rstd, key_token, key, key_inside, 2 * C + head * HEAD_DIM,
            C, HEAD_DIM, BLOCK_N, BLOCK_D, BLOCK_K, PRE_NORM,
        )  # fmt: skip
        for first in range(0, WINDOW_SIZE * WINDOW_SIZE, BLOCK_Q):
            query = first + tl.arange(0, BLOCK_Q)
            token, inside = _tokens(query, image, top, left, height, width, WINDOW_SIZE)
            mean, rstd = None, None
            if PRE_NORM:
                mean, rstd = _statistics(
                    x_ptr, position_ptr, token, query, inside, eps, C, BLOCK_Q, BLOCK_K
                )
            q = _project(
                x_ptr, position_ptr, qkv_weight_ptr, qkv_bias_ptr, gamma_ptr, beta_ptr,
                mean, rstd, token, query, inside, head * HEAD_DIM,
                C, HEAD_DIM, BLOCK_Q, BLOCK_D, BLOCK_K, PRE_NORM,
            )  # fmt: skip
            p = _weights(q, k, bias_ptr, head, query, inside, key, key_inside, scale, WINDOW_SIZE)
            attn_out = product(p.to(v.dtype), v).to(v.dtype)
            if SAVE or HEADS > 1:
                row = token * HEADS + head
                store_rows(attn_out_ptr, attn_out, row, inside, head_columns, HEAD_DIM)
            if HEADS == 1:
                weight = load_rows(weight_ptr, columns, columns < C, head_columns, HEAD_DIM)
                _finish(
                    product(attn_out, tl.trans(weight)), x_ptr, position_ptr, proj_bias_ptr,
                    gamma_ptr, beta_ptr, out_ptr, total_ptr, mean_ptr, rstd_ptr,
                    token, query, inside, columns, eps, C, PRE_NORM, SAVE,
                )  # fmt: skip
    if HEADS > 1:
        tl.debug_barrier()  # what one thread has stored another one loads
        for first in range(0, WINDOW_SIZE * WINDOW_SIZE, BLOCK_P):
            query = first + tl.arange(0, BLOCK_P)
            token, inside = _tokens(query, image, top, left, height, width, WINDOW_SIZE)
            total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
            for head in range(HEADS):
                row, weight_row = token * HEADS + head, columns * HEADS + head
                attn_out = load_rows(attn_out_ptr, row, inside, head_columns, HEAD_DIM)
                weight = load_rows(weight_ptr, weight_row, columns < C, head_columns, HEAD_DIM)
                total += product(attn_out, tl.trans(weight))
            _finish(
                total, x_ptr, position_ptr, proj_bias_ptr, gamma_ptr, beta_ptr,
                out_ptr, total_ptr, mean_ptr, rstd_ptr,
                token, query, inside, columns, eps, C, PRE_NORM, SAVE,
            )  # fmt: skip


@triton.jit(do_not_specialize=['height', 'width', 'rows', 'row_length', 'windows'])
def _backward(
    qkv_ptr, bias_ptr, grad_ptr, qkv_grad_ptr, bias_grad_ptr,
    height, width, rows, row_length, windows, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of q, k and v of a head, and a share of that of the bias."""
    head = tl.program_id(1)
    key, head_columns = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    P: tl.constexpr = WINDOW_SIZE * WINDOW_SIZE
    for number in range(tl.program_id(0), windows, tl.num_programs(0)):
        image, top, left = _window(number, rows, row_length, WINDOW_SIZE)
        key_token, key_inside = _tokens(key, image, top, left, height, width, WINDOW_SIZE)
        # Rows of HEAD_DIM channels: those of a token's queries, its keys and its values.
        key_row = key_token * (3 * HEADS) + HEADS + head
        value_row = key_row + HEADS
        k = load_rows(qkv_ptr, key_row, key_inside, head_columns, HEAD_DIM)
        v = load_rows(qkv_ptr, value_row, key_inside, head_columns, HEAD_DIM)
        k_grad = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        v_grad = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for first in range(0, P, BLOCK_Q):
            query = first + tl.arange(0, BLOCK_Q)
            token, inside = _tokens(query, image, top, left, height, width, WINDOW_SIZE)
            q = load_rows(qkv_ptr, token * (3 * HEADS) + head, inside, head_columns, HEAD_DIM)
            grad = load_rows(grad_ptr, token * HEADS + head, inside, head_columns, HEAD_DIM)
            p = _weights(q, k, bias_ptr, head, query, inside, key, key_inside, scale, WINDOW_SIZE)
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
            store_rows(qkv_grad_ptr, q_grad.to(v.dtype), row, inside, head_columns, HEAD_DIM)
        store_rows(qkv_grad_ptr, k_grad.to(v.dtype), key_row, key_inside, head_columns, HEAD_DIM)
        store_rows(qkv_grad_ptr, v_grad.to(v.dtype), value_row, key_inside, head_columns, HEAD_DIM)


def _tiles(head_dim: int, window_size: int, dtype: torch.dtype, backward: bool) -> dict:
    block_n = block_of(window_size**2)
    # Queries at a time: as many as leave room for the weights of all keys, and in the backward pass
    # for their gradients.
    block_q = 64 if block_n <= 64 else 32 if backward else 64
    if dtype == torch.float32:
        block_q = 16 if block_n > 64 else 32
    return dict(
        BLOCK_D=block_of(head_dim),
        BLOCK_N=block_n,
        BLOCK_Q=min(block_q, block_n),
        num_warps=4 if block_n <= 64 else 8,
        num_stages=1 if backward or dtype == torch.float32 else 2,
    )


def _new_outputs(x: Tensor, num_heads: int, pre_norm: bool, save: bool) -> tuple[Tensor, ...]:
    out, *saved = new_outputs(x, pre_norm, save)
    attn_out = x.new_empty(math.prod(x.shape[:3]) if save or num_heads > 1 else 0, x.shape[3])
    return out, attn_out, *saved


@torch.library.custom_op('contnet_mm::fused_attention', mutates_args=())
def fused_attention(
    x: Tensor, position: Tensor | None, bias: Tensor | None, qkv_weight: Tensor,
    qkv_bias: Tensor | None, weight: Tensor, proj_bias: Tensor, gamma: Tensor, beta: Tensor,
    eps: float, window_size: int, num_heads: int, pre_norm: bool, save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute ``norm(x' + proj(attend(x')))``, or ``x' + ... norm(x') ...`` if pre-norm.

    x' is ``x`` with positions added. Arguments are those of
    :func:`contnet_mm.models.kernels.encoder.attend`; ``x`` and weights have one dtype.

    Returns:
        What :func:`~contnet_mm.models.kernels.common.new_outputs` allocates; behind the result the
        output of the attention before its projection, [T, C], if saved or of several heads.
    """
    inputs = (x, position, bias, qkv_weight, qkv_bias, weight, proj_bias, gamma, beta)
    inputs = [None if t is None else t.contiguous() for t in inputs]
    outputs = _new_outputs(x, num_heads, pre_norm, save_for_backward)
    batch, height, width, channels = x.shape
    head_dim, block_c = channels // num_heads, block_of(channels)
    rows, row_length = triton.cdiv(height, window_size), triton.cdiv(width, window_size)
    if x.numel():
        with on_device_of(x):
            _forward[(batch * rows * row_length,)](
                *inputs, *outputs, height, width, rows, row_length, head_dim**-0.5, eps,
                C=channels, HEADS=num_heads, HEAD_DIM=head_dim, WINDOW_SIZE=window_size,
                BLOCK_C=block_c, BLOCK_K=min(32, block_c),
                BLOCK_P=min(64, max(16, 8192 // block_c)), PRE_NORM=pre_norm,
                SAVE=save_for_backward, **_tiles(head_dim, window_size, x.dtype, False),
            )  # fmt: skip
    return outputs


@fused_attention.register_fake
def _(x, *rest):
    *_, num_heads, pre_norm, save_for_backward = rest
    return _new_outputs(x, num_heads, pre_norm, save_for_backward)


@torch.library.custom_op('contnet_mm::fused_attention_backward', mutates_args=())
def fused_attention_backward(
    grad: Tensor, x: Tensor, position: Tensor | None, bias: Tensor | None, qkv_weight: Tensor,
    qkv_bias: Tensor | None, weight: Tensor, gamma: Tensor, beta: Tensor, attn_out: Tensor,
    total: Tensor, mean: Tensor, rstd: Tensor, window_size: int, num_heads: int, pre_norm: bool,
) -> list[Tensor]:  # fmt: skip
    """Compute the gradients of the tensors of :func:`fused_attention` that are not None, in order.

    Queries, keys, values and attention weights are computed again. ``attn_out``, ``total``,
    ``mean`` and ``rstd`` are as returned there.
    """
    with on_device_of(x):
        _, height, width, channels = x.shape
        grad = grad.reshape(-1, channels)
        if position is not None:
            x = x + _position_map(position, height, width, window_size)
        tokens, gamma = x.reshape(-1, channels).contiguous(), gamma.contiguous()
        sum_grad, y = grad, tokens
        if pre_norm:
            y = (tokens - mean[:, None]) * rstd[:, None] * gamma + beta
            y = y.to(tokens.dtype)
        else:
            sum_grad, *norm_grads = norm.backward(grad, total, mean, rstd, gamma, beta)
        qkv = F.linear(y, qkv_weight, qkv_bias).contiguous()
        out_grad = (sum_grad @ weight).contiguous()
        qkv_grad, bias_grad = _attention_backward(
            out_grad, qkv, bias, height, width, window_size, num_heads
        )
        x_grad = qkv_grad @ qkv_weight
        if pre_norm:
            x_grad, *norm_grads = norm.backward(x_grad, tokens, mean, rstd, gamma, beta)
        x_grad = (x_grad + sum_grad).view(x.shape)
        grads = [
            x_grad,
            None if position is None else _sum_by_position(x_grad, window_size).to(position.dtype),
            None if bias is None else bias_grad.to(bias.dtype),
            qkv_grad.t() @ y,
            None if qkv_bias is None else qkv_grad.sum(0),
            sum_grad.t() @ attn_out,
            sum_grad.sum(0),
            *norm_grads,
        ]
    return [grad for grad in grads if grad is not None]


def _attention_backward(
    grad: Tensor, qkv: Tensor, bias: Tensor | None, height: int, width: int, window_size: int,
    num_heads: int,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute the gradients of ``qkv``, [T, 3 * C], and of ``bias``, in float32, or None."""
    tokens, channels = grad.shape
    head_dim = channels // num_heads
    rows, row_length = triton.cdiv(height, window_size), triton.cdiv(width, window_size)
    windows = tokens // max(1, height * width) * rows * row_length
    qkv_grad = torch.empty_like(qkv)
    programs, bias_grad = windows, None
    if bias is not None:
        bias = bias.contiguous()
        programs = min(windows, max(1, PROGRAMS // num_heads))
        bias_grad = qkv.new_zeros(programs, *bias.shape, dtype=torch.float32)
    if tokens:
        _backward[(programs, num_heads)](
            qkv, bias, grad, qkv_grad, bias_grad, height, width, rows, row_length, windows,
            head_dim**-0.5, HEADS=num_heads, HEAD_DIM=head_dim, WINDOW_SIZE=window_size,
            **_tiles(head_dim, window_size, qkv.dtype, True),
        )  # fmt: skip
    return qkv_grad, None if bias_grad is None else bias_grad.sum(0)


def _position_map(table: Tensor, height: int, width: int, window_size: int) -> Tensor:
    """Repeat a table of positions, [P, C], over the windows of a map, [H, W, C]."""
    rows = torch.arange(height, device=table.device) % window_size
    columns = torch.arange(width, device=table.device) % window_size
    return table[rows[:, None] * window_size + columns]


def _sum_by_position(x: Tensor, window_size: int) -> Tensor:
    """Sum the tokens at each position of their windows, [B, H, W, C] -> [P, C] in float32.

    Without the atomic additions of an index, so that the sum has one order.
    """
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % window_size, 0, -height % window_size))
    x = x.unflatten(1, (-1, window_size)).unflatten(3, (-1, window_size))
    return x.sum((0, 1, 3), dtype=torch.float32).flatten(0, 1)


@fused_attention_backward.register_fake
def _(grad, x, position, bias, qkv_weight, qkv_bias, weight, gamma, beta, *_):
    like = (x, position, bias, qkv_weight, qkv_bias, weight)
    grads = [t.new_empty(t.shape) for t in like if t is not None]
    return [*grads, x.new_empty(x.shape[3]), *(t.new_empty(t.shape) for t in (gamma, beta))]


register_gradient(fused_attention, fused_attention_backward, num_tensors=9)


def _count_flops(shape: tuple[int, ...], window_size: int, linear: int, attention: int) -> int:
    """Count products of tokens by [C, C] matrices, and products of pairs of tokens of a window."""
    batch, height, width, channels = shape
    tokens, pairs = batch * height * width, batch
    for length in (height, width):  # windows at the end are shorter
        pairs *= length // window_size * window_size**2 + (length % window_size) ** 2
    return 2 * channels * (linear * tokens * channels + attention * pairs)


@register_flop_formula(torch.ops.contnet_mm.fused_attention)
def _flops(x_shape, *args, **__) -> int:
    return _count_flops(x_shape, args[-4], linear=4, attention=2)


@register_flop_formula(torch.ops.contnet_mm.fused_attention_backward)
def _flops_backward(grad_shape, x_shape, *args, **__) -> int:
    # Queries, keys and values once more, and all gradients.
    return _count_flops(x_shape, args[-3], linear=11, attention=5)
