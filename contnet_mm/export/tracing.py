"""What torch.jit.trace needs, with which torch before 2.5 exports, to write PSPNet as ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def pool_by_products() -> Iterator[None]:
    """Compute adaptive average pooling by matrix products, inside a with block.

    Its own form is refused where the sides of a map are no multiples of those of the result.
    """
    with patch.object(F, 'adaptive_avg_pool2d', average_pool):
        yield


def average_pool(x: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """Return what ``adaptive_avg_pool2d`` returns, [B, C, H, W] -> [B, C, h, w]."""
    pair = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    lengths = [int(length) for length in x.shape[-2:]]
    rows, columns = (
        _averages(length, length if bins is None else bins).to(x)
        for length, bins in zip(lengths, pair, strict=True)
    )
    return rows @ x @ columns.t()


def _averages(length: int, bins: int) -> Tensor:
    """Return the share of each entry in each mean, [bins, length]."""
    shares = torch.zeros(bins, length)
    for i in range(bins):
        start, end = i * length // bins, -(-(i + 1) * length // bins)
        shares[i, start:end] = 1 / (end - start)
    return shares
