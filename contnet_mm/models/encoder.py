"""The transformer encoders of a ConT block, which work inside windows.

Shapes: B images, H x W map, L = H * W tokens in the order of
:class:`~contnet_mm.models.window_layout.WindowLayout`, C channels.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contnet_mm.models.feed_forward import FeedForward
from contnet_mm.models.linear import apply_linear
from contnet_mm.models.mode import Mode, choose_mode
from contnet_mm.models.position import AbsolutePosition, RelativePosition
from contnet_mm.models.window_attention import window_attention
from contnet_mm.models.window_layout import Way, WindowLayout, window_layout

# Bytes of the widest activation of a run of windows, so that it fits the caches of a core.
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
        """Attend in each window, [B, L, C] -> [B, L, C]."""
        bias = None if self.position is None else self.position()
        drop_rate = self.drop_rate if self.training else 0.0
        qkv = apply_linear(self.qkv, x)
        attn_out = window_attention(qkv, bias, layout, self.window_size, self.num_heads, drop_rate)
        return F.dropout(apply_linear(self.proj, attn_out), self.drop_rate, self.training)


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
        """Encode each window, [B, L, C] -> [B, L, C]; ``mode`` is that of :class:`FeedForward`."""
        return self.feed_forward(self.attend(x, layout), mode)

    def attend(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """Compute the first half: positions, attention, residual and norm."""
        if self.position is not None:  # before the first norm, so that the residual has it too
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

        Windows are independent. Intermediate tensors of a whole map fit no cache, and the system
        would allocate their memory page by page, each time anew.
        """
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
        out = torch.empty_like(tokens)
        batch, _, channels = tokens.shape
        token_bytes = self[0].ffn.fc1.out_features * tokens.element_size()
        for group in layout.windows[layout.window_sizes[0]].groups:
            window = window_layout(group.height, group.width, self.window_sizes, device=x.device)
            area = group.height * group.width
            images = max(1, min(batch, RUN_BYTES // (token_bytes * area)))
            count = max(1, RUN_BYTES // (token_bytes * area * images))
            end = group.start + group.count * area
            for image in range(0, batch, images):
                for first in range(group.start, end, count * area):
                    span = slice(first, min(first + count * area, end))
                    run = tokens[image : image + images]
                    if layout.permutation is None:
                        run = run[:, span]
                    else:
                        run = run.index_select(1, layout.permutation[span])
                    run = run.reshape(-1, area, channels)
                    for encoder in self:
                        run = encoder(run, window, Mode.INFERENCE)
                    out[image : image + images, span] = run.view(-1, span.stop - first, channels)
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
    attn = encoder.attn
    return dict(
        position=None if encoder.position is None else encoder.position.table(),
        bias=None if attn.position is None else attn.position.row_by_row(),
        window_size=attn.window_size,
        num_heads=attn.num_heads,
        pre_norm=encoder.pre_norm,
        eps=encoder.norm1.eps,
        **_weights_and_biases(qkv=attn.qkv, proj=attn.proj, norm=encoder.norm1),
    )


def tensors_of_feed_forward(encoder: Encoder) -> dict[str, object]:
    """Return the arguments of :func:`contnet_mm.models.kernels.encoder.feed_forward`."""
    ffn, norm = encoder.ffn, encoder.norm2
    tensors = _weights_and_biases(fc1=ffn.fc1, fc2=ffn.fc2, norm=norm)
    return dict(tensors, pre_norm=encoder.pre_norm, eps=norm.eps)


def _weights_and_biases(**layers: nn.Module) -> dict[str, Tensor]:
    names = product(layers, ('weight', 'bias'))
    return {f'{layer}_{name}': getattr(layers[layer], name) for layer, name in names}
