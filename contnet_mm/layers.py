"""Window attention of ConTNet in pure PyTorch: splitting maps, position tables, encoders.

Nothing in here knows about registries or configs. Shapes: B batch, H x W map, C channels, nW
windows (of all images together), N tokens of a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def nest(grid: Tensor, inner: int) -> Tensor:
    """Flatten a square grid so that each ``inner`` x ``inner`` window of it is one contiguous run.

    Both encoders of a block then read the same tokens: 4 * 49 consecutive tokens are one 14 x 14
    window, and each 49 of them one 7 x 7 window, so that no copy is needed between the two.

    Args:
        grid: Values of a window in row-major order, [p, p, ...].
        inner: Side of the small windows; divides p.

    Returns:
        The values in nested order, [p * p, ...].
    """
    side, rest = grid.shape[0], grid.shape[2:]
    n = side // inner
    return grid.view(n, inner, n, inner, *rest).transpose(1, 2).reshape(side * side, *rest)


def _regions(height: int, width: int, window: int) -> list[tuple[slice, slice]]:
    """Cut a map into what whole windows cover, the strip to the right and that below, if any."""
    h, w = height - height % window, width - width % window
    cuts = [(0, h, 0, w), (0, h, w, width), (h, height, 0, width)]
    return [
        (slice(top, bottom), slice(left, right))
        for top, bottom, left, right in cuts
        if top < bottom and left < right
    ]


def split_windows(x: Tensor, window: int, inner: int) -> Tensor:
    """Copy a channels-last map into windows, those without padding first.

    The windows that stick out at the bottom or on the right are filled up with zeros. They come
    last, so that the others can be computed without a mask.

    Args:
        x: Map, [B, H, W, C].
        window: Side p of a window in tokens.
        inner: Side of the nested windows, see :func:`nest`.

    Returns:
        Tokens, [nW, p * p, C].
    """
    batch, height, width, channels = x.shape
    n = window // inner
    parts = []
    for rows, columns in _regions(height, width, window):
        part = x[:, rows, columns]
        bottom, right = -part.shape[1] % window, -part.shape[2] % window
        if bottom or right:
            part = F.pad(part, (0, 0, 0, right, 0, bottom))
        nh, nw = part.shape[1] // window, part.shape[2] // window
        part = part.reshape(batch, nh, n, inner, nw, n, inner, channels)
        part = part.permute(0, 1, 4, 2, 5, 3, 6, 7)  # [B, nh, nw, n, n, inner, inner, C]
        parts.append(part.reshape(-1, window * window, channels))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def merge_windows(tokens: Tensor, size: tuple[int, int, int], window: int, inner: int) -> Tensor:
    """Put windows back into a map and drop what was padding: the inverse of :func:`split_windows`.

    Args:
        tokens: Tokens, [nW, p * p, C].
        size: Batch size, height and width of the map.
        window: Side p of a window in tokens.
        inner: Side of the nested windows, see :func:`nest`.

    Returns:
        Map, [B, H, W, C].
    """
    batch, height, width = size
    n, channels = window // inner, tokens.shape[-1]
    out = tokens.new_empty(batch, height, width, channels)
    start = 0
    for rows, columns in _regions(height, width, window):
        h, w = rows.stop - rows.start, columns.stop - columns.start
        nh, nw = -(-h // window), -(-w // window)
        part = tokens[start : start + batch * nh * nw]
        part = part.view(batch, nh, nw, n, n, inner, inner, channels)
        part = part.permute(0, 1, 3, 5, 2, 4, 6, 7)  # [B, nh, n, inner, nw, n, inner, C]
        part = part.reshape(batch, nh * window, nw * window, channels)
        if part.shape == out.shape:  # no padding anywhere: spare the second copy
            return part
        out[:, rows, columns] = part[:, :h, :w]
        start += batch * nh * nw
    return out


def padding_masks(
    size: tuple[int, int, int], window: int, inner: int, like: Tensor
) -> dict[int, Tensor | None]:
    """Additive attention masks that hide the padded tokens of the windows at the border.

    Args:
        size: Batch size, height and width of the map.
        window: Side of the large windows in tokens.
        inner: Side of the nested windows, see :func:`nest`.
        like: A tensor that gives the device.

    Returns:
        For each of the two window sizes the masks of the last windows in the order of
        :func:`split_windows`, 0 for a token and -inf for padding, [nW_border, 1, 1, N]; None where
        no window holds both. A nested window that is all padding stays unmasked, since a softmax
        over nothing would be NaN; nobody reads its result.
    """
    batch, height, width = size
    regions = _regions(height, width, window)
    if not (height % window or width % window):
        return {window: None, inner: None}
    real = torch.ones(1, height, width, 1, dtype=torch.bool, device=like.device)
    border = []
    for rows, columns in regions:
        if rows.stop % window or columns.stop % window:
            part = split_windows(real[:, rows, columns], window, inner)
            border.append(part.expand(batch, -1, -1, -1).reshape(-1, window * window))
    real = torch.cat(border)
    masks: dict[int, Tensor | None] = {}
    for side in {window, inner}:
        tokens = real.view(-1, 1, 1, side * side)
        needed = height % side or width % side
        hidden = ~tokens & tokens.any(-1, keepdim=True)
        zeros = torch.zeros(hidden.shape, device=like.device)
        masks[side] = zeros.masked_fill(hidden, float('-inf')) if needed else None
    return masks


class AbsolutePosition(nn.Module):
    """Learned position of a token in its window: a row and a column table (paper section 3.2).

    Args:
        channels: Width C; even.
        window: Side p of a window in tokens.
        inner: Order of the tokens, see :func:`nest`.
    """

    def __init__(self, channels: int, window: int, inner: int) -> None:
        super().__init__()
        self.window, self.inner = window, inner
        self.rows = nn.Parameter(torch.zeros(window, channels // 2))
        self.columns = nn.Parameter(torch.zeros(window, channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Add the position to tokens, [nW, N, C] -> [nW, N, C]."""
        rows = self.rows[:, None].expand(-1, self.window, -1)
        columns = self.columns[None].expand(self.window, -1, -1)
        return x + nest(torch.cat([rows, columns], dim=-1), self.inner)


class RelativePosition(nn.Module):
    """Learned bias per head and offset of two tokens (Swin, arXiv 2103.14030, equation 4).

    Args:
        num_heads: Number of attention heads.
        window: Side p of a window in tokens.
        inner: Order of the tokens, see :func:`nest`.
    """

    def __init__(self, num_heads: int, window: int, inner: int) -> None:
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        side = torch.arange(window)
        grid = torch.stack(torch.meshgrid(side, side, indexing='ij'), dim=-1)  # [p, p, 2]
        place = nest(grid, inner)
        offset = place[:, None] - place[None] + window - 1  # query minus key, from 0, [N, N, 2]
        index = offset[..., 0] * (2 * window - 1) + offset[..., 1]
        self.register_buffer('index', index, persistent=False)

    def forward(self) -> Tensor:
        """Bias of the attention logits, [1, heads, N, N]."""
        bias = self.table[self.index.flatten()].view(*self.index.shape, -1)
        return bias.permute(2, 0, 1).unsqueeze(0)


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
        """Mix the tokens of each window.

        Args:
            x: Tokens, [nW, N, C].
            mask: Additive masks of the last windows, [nW_border, 1, 1, N], see
                :func:`padding_masks`.

        Returns:
            Tokens, [nW, N, C].
        """
        windows, tokens, channels = x.shape
        qkv = self.qkv(x).view(windows, tokens, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # [nW, heads, N, C / heads] each
        # A mask of another dtype than q is read wrongly by some fused kernels, so both are cast.
        bias = None if self.position is None else self.position().to(q.dtype)
        border = 0 if mask is None else len(mask)
        parts = []
        if border < windows or not border:
            whole = slice(0, windows - border)
            parts.append(self._attend(q[whole], k[whole], v[whole], bias))
        if border:
            rest, mask = slice(windows - border, windows), mask.to(q.dtype)
            parts.append(
                self._attend(q[rest], k[rest], v[rest], mask if bias is None else mask + bias)
            )
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        out = self.proj(out.reshape(windows, tokens, channels))
        return F.dropout(out, self.drop_rate, self.training)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        drop_rate = self.drop_rate if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop_rate)
        return out.transpose(1, 2)  # [nW, N, heads, C / heads]


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
        """Transform tokens, [nW, N, C] -> [nW, N, C]."""
        x = F.dropout(F.gelu(self.fc1(x)), self.drop_rate, self.training)
        return F.dropout(self.fc2(x), self.drop_rate, self.training)


class Encoder(nn.Module):
    """Standard transformer encoder over the tokens of a window (STE, paper section 3.1).

    Args:
        channels: Width C.
        window: Side p of a window in tokens.
        inner: Order of the tokens, see :func:`nest`.
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
        window: int,
        inner: int,
        num_heads: int,
        feedforward_channels: int,
        position: str,
        pre_norm: bool,
        qkv_bias: bool,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.window, self.pre_norm = window, pre_norm
        absolute = position == 'absolute'
        self.position = AbsolutePosition(channels, window, inner) if absolute else None
        bias = None if absolute else RelativePosition(num_heads, window, inner)
        self.attn = WindowAttention(channels, num_heads, bias, qkv_bias, drop_rate)
        self.norm1 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, feedforward_channels, drop_rate)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Encode each window.

        Args:
            x: Tokens in nested order, [nW, N, C].
            mask: Additive masks of the last windows, [nW_border, 1, 1, N], or None.

        Returns:
            Tokens, [nW, N, C].
        """
        if self.position is not None:  # before the first norm, so it runs through the residual too
            x = self.position(x)
        if self.pre_norm:
            x = x + self.attn(self.norm1(x), mask)
            return x + self.ffn(self.norm2(x))
        x = self.norm1(x + self.attn(x, mask))
        return self.norm2(x + self.ffn(x))


class WindowEncoders(nn.ModuleList):
    """The two encoders of a block, over one token order that serves both window sizes.

    Args:
        channels: Width C.
        windows: Window sides of the first and the second encoder; one divides the other.
        **kwargs: Further arguments of :class:`Encoder`.
    """

    def __init__(self, channels: int, windows: tuple[int, int], **kwargs) -> None:
        self.outer, self.inner = max(windows), min(windows)
        super().__init__(Encoder(channels, window, self.inner, **kwargs) for window in windows)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a channels-last map of any size, [B, C, H, W] -> [B, C, H, W]."""
        x = x.permute(0, 2, 3, 1)  # a free view of a channels-last tensor
        size = (x.shape[0], x.shape[1], x.shape[2])
        masks = padding_masks(size, self.outer, self.inner, like=x)
        tokens = split_windows(x, self.outer, self.inner)
        for encoder in self:
            tokens = tokens.view(-1, encoder.window**2, tokens.shape[-1])
            tokens = encoder(tokens, masks[encoder.window])
        tokens = tokens.view(-1, self.outer**2, tokens.shape[-1])
        return merge_windows(tokens, size, self.outer, self.inner).permute(0, 3, 1, 2)
