"""The transformer encoders of a ConT block, which work inside windows.

Nothing in here knows about registries or configs. Shapes: B images, H x W map, L = H * W tokens in
the order of :class:`~contnet_mm.models.window_layout.WindowLayout`, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contnet_mm.models.feed_forward import FeedForward
from contnet_mm.models.linear import apply_linear
from contnet_mm.models.mode import Mode, choose_mode
from contnet_mm.models.position import AbsolutePosition, RelativePosition
from contnet_mm.models.window_attention import window_attention
from contnet_mm.models.window_layout import Way, WindowLayout, window_layout

# Bytes of the widest activation of a run of windows: what the caches of a core hold.
RUN_BYTES = 8 * 2**20


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window.

    Args:
        channels: Width C.
        window_size: Side of a window in tokens.
        num_heads: Number of heads; divides C.
        position: Bias of the logits, or None.
        qkv_bias: Whether the projection to q, k and v has a bias.
        drop_rate: Dropout of the attention weights and of the output.
    """

    def __init__(
        self,
        channels: int,
        window_size: int,
        num_heads: int,
        position: RelativePosition | None,
        qkv_bias: bool,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.window_size, self.num_heads, self.drop_rate = window_size, num_heads, drop_rate
        self.position = position
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """Mix the tokens of each window, [B, L, C] -> [B, L, C]."""
        bias = None if self.position is None else self.position()
        drop_rate = self.drop_rate if self.training else 0.0
        qkv = apply_linear(self.qkv, x)
        x = window_attention(qkv, bias, layout, self.window_size, self.num_heads, drop_rate)
        return F.dropout(apply_linear(self.proj, x), self.drop_rate, self.training)


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
        self.position = AbsolutePosition(channels, window_size) if absolute else None
        bias = None if absolute else RelativePosition(num_heads, window_size, inner_size)
        self.attn = WindowAttention(channels, window_size, num_heads, bias, qkv_bias, drop_rate)
        self.norm1 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, feedforward_channels, drop_rate)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, layout: WindowLayout, mode: Mode = Mode.PLAIN) -> Tensor:
        """Encode each window.

        Args:
            x: Tokens, [B, L, C].
            layout: Of the tokens.
            mode: See :class:`FeedForward`.

        Returns:
            Tokens, [B, L, C].
        """
        return self.feed_forward(self.attend(x, layout), mode)

    def attend(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """Compute the first half: positions, attention, residual and norm."""
        if self.position is not None:  # before the first norm, so it runs through the residual too
            position = self.position(layout.windows[self.window_size].position_index)
            x = x + position.to(x.dtype)  # under autocast tokens keep their dtype
        if self.pre_norm:
            return x + self.attn(self.norm1(x), layout)
        return self.norm1(x + self.attn(x, layout))

    def feed_forward(self, x: Tensor, mode: Mode = Mode.PLAIN) -> Tensor:
        """Compute the second half: linear layers, residual and norm."""
        if self.pre_norm:
            return x + self.ffn(self.norm2(x), mode)
        return self.norm2(x + self.ffn(x, mode))


class WindowEncoders(nn.ModuleList):
    """The two encoders of a block, over one order of tokens that serves both window sizes.

    Args:
        channels: Width C.
        window_sizes: Of the first and the second encoder; one divides the other.
        fused: Run Triton kernels where they take the map.
        **kwargs: Further arguments of :class:`Encoder`.
    """

    def __init__(
        self, channels: int, window_sizes: tuple[int, int], fused: bool = False, **kwargs
    ) -> None:
        super().__init__(
            Encoder(channels, size, min(window_sizes), **kwargs) for size in window_sizes
        )
        self.window_sizes, self.fused = window_sizes, fused

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self[0].attn.proj.in_features // self[0].attn.num_heads

    @property
    def has_bias(self) -> bool:
        """Whether a relative position is added to the logits."""
        return self[0].attn.position is not None

    @property
    def has_dropout(self) -> bool:
        """Whether anything is dropped at random now."""
        return self.training and self[0].ffn.drop_rate > 0

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """Encode a channels-last map of any size, [B, C, H, W] -> [B, C, H, W]."""
        if self.fused and self._kernels_take(x, layout):
            return self._encode_fused(x)
        mode = choose_mode(layout.is_traced)
        if layout.way is Way.GROUPED and mode is Mode.INFERENCE:
            return self._encode_in_runs(x, layout)
        tokens = layout.to_windows(x)
        for encoder in self:
            tokens = encoder(tokens, layout, mode)
        return layout.to_map(tokens, *x.shape[2:])

    def _encode_in_runs(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """Encode a few windows at a time, through both encoders.

        Intermediate tensors of a whole map fit no cache, and the system hands out their memory page
        by page, each time anew. Windows do not know of each other, so a few will do.
        """
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
        out = torch.empty_like(tokens)
        batch, _, channels = tokens.shape
        token_bytes = self[0].ffn.fc1.out_features * tokens.element_size()
        for group in layout.windows[layout.window_sizes[0]].groups:
            window = window_layout(group.height, group.width, self.window_sizes, device=x.device)
            area = group.height * group.width
            images = min(batch, max(1, RUN_BYTES // (token_bytes * area)))
            count = max(1, RUN_BYTES // (token_bytes * area * max(1, images)))
            for image in range(0, batch, max(1, images)):
                for first in range(0, group.count, count):
                    number = min(count, group.count - first)
                    start = group.start + first * area
                    places = slice(start, start + number * area)
                    run = tokens[image : image + images]
                    if layout.permutation is None:
                        run = run[:, places]
                    else:
                        run = run.index_select(1, layout.permutation[places])
                    run = run.reshape(-1, area, channels)
                    for encoder in self:
                        run = encoder(run, window, Mode.INFERENCE)
                    out[image : image + images, places] = run.view(-1, number * area, channels)
        return layout.to_map(out, *x.shape[2:])

    def _kernels_take(self, x: Tensor, layout: WindowLayout) -> bool:
        from contnet_mm.models import kernels  # imports torch's compiler, which takes a while

        window_size = max(self.window_sizes)
        supported = kernels.supports(x, window_size, self.head_dim, self.has_dropout)
        return supported and layout.way is not Way.TRACED  # torch.export wants torch's operators

    def _encode_fused(self, x: Tensor) -> Tensor:
        from contnet_mm.models.kernels.encoder import attend, feed_forward  # needs Triton

        tokens = x.permute(0, 2, 3, 1)
        for encoder in self:
            tokens = attend(tokens, **tensors_of_attention(encoder))
            tokens = feed_forward(tokens, **tensors_of_feed_forward(encoder))
        return tokens.permute(0, 3, 1, 2)


def tensors_of_attention(encoder: Encoder) -> dict[str, object]:
    """Return the arguments of :func:`contnet_mm.models.kernels.encoder.attend`."""
    attn, norm = encoder.attn, encoder.norm1
    return dict(
        position=None if encoder.position is None else encoder.position.table(),
        bias=None if attn.position is None else attn.position.row_by_row(),
        qkv_weight=attn.qkv.weight,
        qkv_bias=attn.qkv.bias,
        proj_weight=attn.proj.weight,
        proj_bias=attn.proj.bias,
        norm_weight=norm.weight,
        norm_bias=norm.bias,
        eps=norm.eps,
        window_size=attn.window_size,
        num_heads=attn.num_heads,
        pre_norm=encoder.pre_norm,
    )


def tensors_of_feed_forward(encoder: Encoder) -> dict[str, object]:
    """Return the arguments of :func:`contnet_mm.models.kernels.encoder.feed_forward`."""
    ffn, norm = encoder.ffn, encoder.norm2
    return dict(
        fc1_weight=ffn.fc1.weight,
        fc1_bias=ffn.fc1.bias,
        fc2_weight=ffn.fc2.weight,
        fc2_bias=ffn.fc2.bias,
        norm_weight=norm.weight,
        norm_bias=norm.bias,
        eps=norm.eps,
        pre_norm=encoder.pre_norm,
    )
