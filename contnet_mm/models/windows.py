"""The partition of a map into windows, and back.

Shapes: B images, C channels, H x W map, P tokens of a window. A block has two window sizes, of
which the inner one divides the outer one. A map is padded at the bottom and right to whole outer
windows, and its tokens are put into *nested order*: those of each outer window are contiguous, and
so are those of each inner window inside it. Both encoders of a block then work on views of one
tensor.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# torch's attention kernels on GPUs copy a mask whose strides are no multiples of this.
MASK_ALIGNMENT = 16


def count(length: int, size: int) -> int:
    """Return how many windows of a size a length takes."""
    return (length + size - 1) // size  # a traced division of a negative number would truncate


def pad(x: Tensor, bottom: int, right: int, value: float = 0.0) -> Tensor:
    """Pad a map at the bottom and right, or crop it where the numbers are negative."""
    return F.pad(x, (0, right, 0, bottom), value=value) if bottom or right else x


def to_windows(x: Tensor, outer: int, inner: int) -> Tensor:
    """Pad a map and take it apart, [B, C, H, W] -> [B * windows, outer ** 2, C]."""
    height, width = x.shape[2:]
    rows, columns, nested = count(height, outer), count(width, outer), outer // inner
    x = pad(x, rows * outer - height, columns * outer - width).permute(0, 2, 3, 1)
    x = x.unflatten(2, (columns, nested, inner)).unflatten(1, (rows, nested, inner))
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(3, 6).flatten(0, 2)


def to_map(tokens: Tensor, size: tuple[int, int], outer: int, inner: int) -> Tensor:
    """Put windows together and crop the padding, the inverse of :func:`to_windows`.

    Args:
        tokens: In nested order, [B * windows, any P, C].
        size: Height and width of the map.
        outer: Side of an outer window.
        inner: Side of an inner window.

    Returns:
        The map, [B, C, H, W], channels-last in memory.
    """
    height, width = size
    rows, columns, nested = count(height, outer), count(width, outer), outer // inner
    x = tokens.reshape(-1, rows, columns, nested, nested, inner, inner, tokens.shape[-1])
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3).permute(0, 3, 1, 2)
    return pad(x, height - rows * outer, width - columns * outer)


def padding_mask(x: Tensor, window_size: int, outer: int, inner: int) -> Tensor | None:
    """Return what to add to the logits of each key: 0, or minus infinity for padding.

    A window of nothing but padding is not masked: its softmax would be NaN, and it is cropped.

    Args:
        x: Map of the stage, [B, C, H, W].
        window_size: Side of the windows that attend, ``outer`` or ``inner``.
        outer: Side of an outer window.
        inner: Side of an inner window.

    Returns:
        [B * windows, 1, 1, P], with P rounded up to a multiple of ``MASK_ALIGNMENT``; None where
        the map is a multiple of the window size.
    """
    bottom, right = (count(n, window_size) * window_size - n for n in x.shape[2:])
    if not (bottom or right):
        return None
    mask = pad(x.new_zeros(len(x), 1, *x.shape[2:]), bottom, right, value=float('-inf'))
    # Windows beyond are padded with zeros.
    return align(to_windows(mask, outer, inner).reshape(-1, 1, 1, window_size**2))


def align(mask: Tensor) -> Tensor:
    """Lengthen the last dimension of a mask to a multiple of ``MASK_ALIGNMENT``."""
    return F.pad(mask, (0, -mask.shape[-1] % MASK_ALIGNMENT))
