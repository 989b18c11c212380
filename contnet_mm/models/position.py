"""Learned positions of tokens in their windows, absolute and relative.

A window of side p holds P = p ** 2 tokens in nested order (see :mod:`~contnet_mm.models.windows`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contnet_mm.models.windows import align, to_windows


class AbsolutePosition(nn.Module):
    """Learned position of a token in its window: a row and a column table (paper section 3.2).

    Args:
        channels: Width C; even.
        window_size: Side p of a window in tokens.
        inner_size: Side of the windows nested in it.
    """

    def __init__(self, channels: int, window_size: int, inner_size: int) -> None:
        super().__init__()
        self.inner_size = inner_size
        self.rows = nn.Parameter(torch.zeros(window_size, channels // 2))
        self.columns = nn.Parameter(torch.zeros(window_size, channels // 2))

    def forward(self) -> Tensor:
        """Return what to add to the tokens of a window, [P, C]."""
        # Rows and columns of inner windows, rows and columns in them: a view, so that the backward
        # pass sums; an index would make a GPU sort.
        rows, columns = (x.unflatten(0, (-1, self.inner_size)) for x in (self.rows, self.columns))
        n, p = rows.shape[:2]
        rows = rows[:, None, :, None].expand(n, n, p, p, -1)
        columns = columns[None, :, None].expand(n, n, p, p, -1)
        return torch.cat([rows, columns], dim=-1).flatten(0, 3)


class RelativePosition(nn.Module):
    """Learned bias per head and offset of two tokens (Swin, arXiv 2103.14030, equation 4).

    Args:
        num_heads: Number of attention heads.
        window_size: Side p of a window in tokens.
        inner_size: Side of the windows nested in it.
    """

    def __init__(self, num_heads: int, window_size: int, inner_size: int) -> None:
        super().__init__()
        p = window_size
        self.table = nn.Parameter(torch.zeros((2 * p - 1) ** 2, num_heads))
        token = to_windows(torch.arange(p * p).view(1, 1, p, p), p, inner_size).flatten()
        row, column = token // p, token % p
        down = row[:, None] - row + p - 1  # query minus key, from 0
        right = column[:, None] - column + p - 1
        self.register_buffer('index', align(down * (2 * p - 1) + right), persistent=False)

    def forward(self) -> Tensor:
        """Return the bias of the logits, query by key, [1, heads, P, aligned P].

        torch's fused attention refuses a bias whose last stride is not 1, and copies one with
        another stride that is not aligned; ``contiguous()`` would leave those of a single head.
        """
        bias = F.embedding(self.index, self.table).permute(2, 0, 1)
        return bias.clone(memory_format=torch.contiguous_format)[None]
