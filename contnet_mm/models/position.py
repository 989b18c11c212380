"""Learned positions of tokens in their windows, absolute and relative."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contnet_mm.models.window_layout import window_permutation


class AbsolutePosition(nn.Module):
    """Learned position of a token in its window: a row and a column table (paper section 3.2).

    Args:
        channels: Width C; even.
        window_size: Side of a window in tokens.
    """

    def __init__(self, channels: int, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.rows = nn.Parameter(torch.zeros(window_size, channels // 2))
        self.columns = nn.Parameter(torch.zeros(window_size, channels // 2))

    def table(self) -> Tensor:
        """Return the position of each token of a window, row by row, [P, C]."""
        rows = self.rows[:, None].expand(-1, self.window_size, -1)
        columns = self.columns[None].expand(self.window_size, -1, -1)
        return torch.cat([rows, columns], dim=-1).flatten(0, 1)

    def forward(self, position_index: Tensor) -> Tensor:
        """Look up what to add to each token, [L] -> [L, C]."""
        # The gradient of an embedding adds up in one call, in an order that repeats itself.
        return F.embedding(position_index, self.table())


class RelativePosition(nn.Module):
    """Learned bias per head and offset of two tokens (Swin, arXiv 2103.14030, equation 4).

    Args:
        num_heads: Number of attention heads.
        window_size: Side of a window in tokens.
        inner_size: Side of the windows nested in it, which the order of its tokens follows.
    """

    def __init__(self, num_heads: int, window_size: int, inner_size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        permutation = window_permutation(window_size, window_size, (window_size, inner_size))
        row, column = np.divmod(permutation.astype(np.int64), window_size)
        down = row[:, None] - row + window_size - 1  # query minus key, from 0
        right = column[:, None] - column + window_size - 1
        index = torch.from_numpy(down * (2 * window_size - 1) + right)
        self.register_buffer('index', index, persistent=False)
        self.register_buffer('rank', torch.from_numpy(np.argsort(permutation)), persistent=False)

    def forward(self) -> Tensor:
        """Return the bias of the logits, query by key in the order of tokens, [heads, P, P]."""
        return F.embedding(self.index, self.table).permute(2, 0, 1)

    def row_by_row(self) -> Tensor:
        """Return the same bias with the tokens of a window row by row, [heads, P, P]."""
        return self()[:, self.rank[:, None], self.rank]
