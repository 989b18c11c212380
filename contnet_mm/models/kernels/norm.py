"""Triton kernel of the backward pass of a layer norm whose statistics were saved in float32.

That of torch wants its scale in the dtype of the tokens, which under autocast it is not: the tokens
would have to be copied to float32 and back.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from contnet_mm.models.kernels.common import (
    PROGRAMS,
    block_of,
    load_rows,
    load_vector,
    store_rows,
)


@triton.jit(do_not_specialize=['tokens', 'tiles'])
def _backward(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, gamma_ptr, out_ptr, gamma_out, beta_out, tokens, tiles,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK_C)
    gamma = load_vector(gamma_ptr, columns, C)
    gamma_grad = tl.zeros([BLOCK_C], tl.float32)
    beta_grad = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        rows = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        row_mask = rows < tokens
        x = load_rows(x_ptr, rows, row_mask, columns, C)
        grad = load_rows(grad_ptr, rows, row_mask, columns, C).to(tl.float32)  # 0 where no token is
        mean = tl.load(mean_ptr + rows, row_mask, other=0.0)
        rstd = tl.load(rstd_ptr + rows, row_mask, other=0.0)
        normal = (x.to(tl.float32) - mean[:, None]) * rstd[:, None]
        slope = grad * gamma[None]  # 0 behind the last column
        along = tl.sum(slope * normal, axis=1) / C
        out = slope - (tl.sum(slope, axis=1) / C)[:, None] - normal * along[:, None]
        store_rows(out_ptr, (out * rstd[:, None]).to(x.dtype), rows, row_mask, columns, C)
        gamma_grad += tl.sum(grad * normal, axis=0)
        beta_grad += tl.sum(grad, axis=0)
    share = tl.program_id(0) * C + columns
    tl.store(gamma_out + share, gamma_grad, columns < C)
    tl.store(beta_out + share, beta_grad, columns < C)


def backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor
) -> list[Tensor]:
    """Compute the gradients of a layer norm.

    Args:
        grad: Gradient of the result, [T, C].
        x: What was normalised, [T, C], contiguous as all that follow.
        mean: Of each token, [T], in float32.
        rstd: Reciprocal deviation of each token, [T], in float32.
        gamma: Scale, [C].
        beta: Shift, [C].

    Returns:
        Gradients of ``x``, ``gamma`` and ``beta``, in their dtypes.
    """
    tokens, channels = x.shape
    block_c = block_of(channels)
    block_t = max(1, 4096 // block_c)
    tiles = triton.cdiv(tokens, block_t)
    programs = min(tiles, PROGRAMS)
    out = torch.empty_like(x)
    gamma_grad, beta_grad = x.new_empty(2, programs, channels, dtype=torch.float32)
    if tokens:
        _backward[(programs,)](
            grad.contiguous(), x, mean, rstd, gamma, out, gamma_grad, beta_grad, tokens, tiles,
            C=channels, BLOCK_C=block_c, BLOCK_T=block_t, num_warps=4,
        )  # fmt: skip
    return [out, gamma_grad.sum(0).to(gamma.dtype), beta_grad.sum(0).to(beta.dtype)]
