"""The transformer encoder of a ConT block, which works inside windows.

Shapes: N windows of all images, P tokens of a window in nested order (see
:mod:`~contnet_mm.models.windows`), C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from contnet_mm.models.attention import attend
from contnet_mm.models.position import AbsolutePosition, RelativePosition
from contnet_mm.models.recompute import recompute


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window.

    Args:
        channels: Width C.
        num_heads: Number of heads; divides C.
        position: Bias of the logits, or None.
        qkv_bias: Whether the projection to q, k and v has a bias.
        drop_rate: Dropout of the attention weights and of the output.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        position: RelativePosition | None,
        qkv_bias: bool,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_heads, self.drop_rate = num_heads, drop_rate
        self.position = position
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend in each window.

        Args:
            x: Tokens, [N, P, C].
            mask: See :func:`~contnet_mm.models.windows.padding_mask`.

        Returns:
            [N, P, C].
        """
        q, k, v = self.split_heads(self.qkv(x))
        bias = mask
        if self.position is not None:
            bias = self.position() if mask is None else self.position() + mask
        drop_rate = self.drop_rate if self.training else 0.0
        out = attend(q, k, v, bias, drop_rate).transpose(1, 2).flatten(2)
        return F.dropout(self.proj(out), self.drop_rate, self.training)

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """View queries, keys and values, [N, P, 3 * C] -> [N, heads, P, C / heads] each."""
        # Split along this dimension, their gradients are stacked into that of qkv without a copy.
        parts = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return tuple(part.transpose(1, 2) for part in parts)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, applied to each token.

    Args:
        channels: Width C of the tokens.
        hidden_channels: Width between the layers.
        drop_rate: Dropout after each layer.
    """

    def __init__(self, channels: int, hidden_channels: int, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens, [N, P, C] -> [N, P, C]."""
        x = self.fc1(x)
        if self.training:  # GELU's argument is kept; its result is as wide and quickly computed
            x = recompute(self._activate, x, has_dropout=self.drop_rate > 0)
        else:
            x = self._activate(x)
        return F.dropout(x, self.drop_rate, self.training)

    def _activate(self, x: Tensor) -> Tensor:
        return self.fc2(F.dropout(F.gelu(x), self.drop_rate, self.training))


class Encoder(nn.Module):
    """Standard transformer encoder over the tokens of a window (STE, paper section 3.1).

    Args:
        channels: Width C.
        window_size: Side of a window in tokens.
        inner_size: Side of the windows nested in it, which the order of tokens follows.
        num_heads: Number of attention heads.
        feedforward_channels: Hidden width of the feed-forward half.
        position: ``'absolute'`` or ``'relative'``.
        pre_norm: Normalise before each half instead of after its sum.
        qkv_bias: Whether q, k and v have a bias.
        drop_rate: Dropout rate.
    """

    def __init__(
        self,
        channels: int,
        window_size: int,
        inner_size: int,
        num_heads: int,
        feedforward_channels: int,
        position: str,
        pre_norm: bool,
        qkv_bias: bool,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.window_size, self.pre_norm = window_size, pre_norm
        absolute = position == 'absolute'
        self.position = AbsolutePosition(channels, window_size, inner_size) if absolute else None
        bias = None if absolute else RelativePosition(num_heads, window_size, inner_size)
        self.attn = WindowAttention(channels, num_heads, bias, qkv_bias, drop_rate)
        self.norm1 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, feedforward_channels, drop_rate)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Encode each window, [N, P, C] -> [N, P, C]; ``mask`` as in :class:`WindowAttention`."""
        if self.position is not None:  # before the first norm, so that the residual has it too
            x = x + self.position().to(x.dtype)
        if self.pre_norm:
            x = x + self.attn(self.norm1(x), mask)
            return x + self.ffn(self.norm2(x))
        x = self.norm1(x + self.attn(x, mask))
        return self.norm2(x + self.ffn(x))
