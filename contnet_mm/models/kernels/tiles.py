"""What the kernels share: sizes of tiles, their way from and to memory, products, statistics."""

from __future__ import annotations

import os

import triton
import triton.language as tl

# Programs that run at once: a few for each of the 132 multiprocessors of an H100.
PROGRAMS = 528
# The interpreter of Triton 3.6 multiplies the bits of bfloat16 as if they were integers.
WIDENS = tl.constexpr(os.environ.get('TRITON_INTERPRET') == '1')
MIN_SIDE = 16  # of a matrix that tensor cores multiply


def block_of(number: int) -> int:
    """Round up to a power of two that a product of tiles takes."""
    return max(MIN_SIDE, triton.next_power_of_2(number))


def splits(number: int, programs: int) -> tuple[int, int]:
    """Share items between programs.

    Args:
        number: Of items, at least 1.
        programs: That each share gets.

    Returns:
        How many shares, and how many items each of them has at most.
    """
    length = triton.cdiv(number, max(1, PROGRAMS // programs))
    return triton.cdiv(number, length), length


@triton.jit
def product(a, b):
    """Matrix product in float32; float32 is not rounded to TF32."""
    if WIDENS:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision='ieee')


@triton.jit
def load_rows(pointer, rows, row_mask, columns, COLUMNS: tl.constexpr):
    """Rows of a [T, COLUMNS] tensor, with zeros where there is no row or no column."""
    mask = row_mask[:, None] & (columns < COLUMNS)[None]
    return tl.load(pointer + rows[:, None].to(tl.int64) * COLUMNS + columns[None], mask, other=0.0)


@triton.jit
def store_rows(pointer, values, rows, row_mask, columns, COLUMNS: tl.constexpr):
    """Store what :func:`load_rows` would load."""
    mask = row_mask[:, None] & (columns < COLUMNS)[None]
    tl.store(pointer + rows[:, None].to(tl.int64) * COLUMNS + columns[None], values, mask)


@triton.jit
def load_vector(pointer, columns, COLUMNS: tl.constexpr):
    """A [COLUMNS] tensor in float32, with zeros behind its end."""
    return tl.load(pointer + columns, columns < COLUMNS, other=0.0).to(tl.float32)


@triton.jit
def statistics(x, columns, COLUMNS: tl.constexpr, eps):
    """Mean and reciprocal deviation of each row; ``x`` is 0 behind its last column."""
    mean = tl.sum(x, axis=1) / COLUMNS
    centred = tl.where((columns < COLUMNS)[None], x - mean[:, None], 0.0)
    return mean, tl.rsqrt(tl.sum(centred * centred, axis=1) / COLUMNS + eps)


@triton.jit
def normalise(x, mean, rstd, gamma, beta):
    """Apply a layer norm whose statistics are known."""
    return (x - mean[:, None]) * rstd[:, None] * gamma[None] + beta[None]
