"""What the kernels share: sizes of tiles, loads and stores, products, statistics, gradients."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import torch
import triton
import triton.language as tl
from torch import Tensor

# Programs that run at once: a few for each of the 132 multiprocessors of an H100.
PROGRAMS = 528
# The interpreter of Triton 3.6 multiplies the bits of bfloat16 as if they were integers.
WIDENS = tl.constexpr(os.environ.get('TRITON_INTERPRET') == '1')
MIN_BLOCK = 16  # rows or columns of a matrix that tensor cores multiply


def block_of(number: int) -> int:
    """Round up to a power of two that a product of tiles takes."""
    return max(MIN_BLOCK, triton.next_power_of_2(number))


def splits(number: int, programs: int) -> tuple[int, int]:
    """Share items between programs.

    Args:
        number: Of items.
        programs: That each share gets.

    Returns:
        How many shares, and how many items each of them has at most.
    """
    length = max(1, triton.cdiv(number, max(1, PROGRAMS // programs)))
    return triton.cdiv(number, length), length


def on_device_of(x: Tensor) -> AbstractContextManager:
    """Launch on the device of a tensor, which is not always the current one; without autocast."""
    stack = ExitStack()
    stack.enter_context(torch.autocast(x.device.type, enabled=False))
    if x.is_cuda:
        stack.enter_context(torch.cuda.device(x.device))
    return stack


def new_outputs(x: Tensor, pre_norm: bool, save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate what half an encoder returns for T tokens, [..., C]; what is not saved is empty.

    Returns:
        The result, [..., C]; the sum that is normalised, [T, C], unless pre-norm; mean and
        reciprocal deviation of what is normalised, [T] each, in float32.
    """
    tokens = math.prod(x.shape[:-1]) if save else 0
    total = x.new_empty(0 if pre_norm else tokens, x.shape[-1])
    mean, rstd = (x.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), total, mean, rstd


def register_gradient(forward: Callable, backward: Callable, num_tensors: int) -> None:
    """Let autograd compute the gradients of an operator by another one.

    Args:
        forward: Takes tensors or None, ``eps``, options and whether to save for a backward pass;
            returns the result and what is saved.
        backward: Takes the gradient of the result, those tensors without the last bias, what was
            saved and the options; returns the gradients of the tensors that are not None.
        num_tensors: Number of the tensors; the last three are a bias, scale and shift of the norm.
    """

    def setup_context(ctx, inputs, output):
        tensors, (_, *ctx.options, ctx.is_saved) = inputs[:num_tensors], inputs[num_tensors:]
        ctx.is_given = [tensor is not None for tensor in tensors]
        ctx.save_for_backward(*tensors[:-3], *tensors[-2:], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    def compute(ctx, grad, *_):
        others = [None] * (len(ctx.options) + 2)
        if grad is None:  # the loss does not depend on the result after all
            return *([None] * num_tensors), *others
        if not ctx.is_saved:
            raise ValueError(
                'save_for_backward must be True where a backward pass is to follow, got False'
            )
        grads = iter(backward(grad, *ctx.saved_tensors, *ctx.options))
        return *(next(grads) if given else None for given in ctx.is_given), *others

    forward.register_autograd(compute, setup_context=setup_context)


@triton.jit
def product(a, b):
    """Multiply matrices in float32; float32 is not rounded to TF32."""
    if WIDENS:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision='ieee')


@triton.jit
def load_rows(pointer, rows, row_mask, columns, COLUMNS: tl.constexpr):
    """Load rows of a [T, COLUMNS] tensor, with zeros where there is no row or no column."""
    mask = row_mask[:, None] & (columns < COLUMNS)[None]
    return tl.load(pointer + rows[:, None].to(tl.int64) * COLUMNS + columns[None], mask, other=0.0)


@triton.jit
def store_rows(pointer, values, rows, row_mask, columns, COLUMNS: tl.constexpr):
    """Store what :func:`load_rows` would load."""
    mask = row_mask[:, None] & (columns < COLUMNS)[None]
    tl.store(pointer + rows[:, None].to(tl.int64) * COLUMNS + columns[None], values, mask)


@triton.jit
def load_vector(pointer, columns, COLUMNS: tl.constexpr):
    """Load a [COLUMNS] tensor in float32, with zeros behind its end."""
    return tl.load(pointer + columns, columns < COLUMNS, other=0.0).to(tl.float32)


@triton.jit
def statistics(x, columns, COLUMNS: tl.constexpr, eps):
    """Compute mean and reciprocal deviation of rows; ``x`` is 0 behind its last column."""
    mean = tl.sum(x, axis=1) / COLUMNS
    centred = tl.where((columns < COLUMNS)[None], x - mean[:, None], 0.0)
    return mean, tl.rsqrt(tl.sum(centred * centred, axis=1) / COLUMNS + eps)


@triton.jit
def normalise(x, mean, rstd, gamma, beta):
    """Apply a layer norm whose statistics are known."""
    return (x - mean[:, None]) * rstd[:, None] * gamma[None] + beta[None]
