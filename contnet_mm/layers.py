"""Window encoders of ConTNet in pure PyTorch: positions, attention, feed-forward layers.

Nothing in here knows about registries or configs. Shapes: B batch, H x W map, C channels,
T = B * H * W tokens in the order of :func:`~contnet_mm.windows.token_order`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contnet_mm import kernels, ops
from contnet_mm.windows import Maps, Windows, area, cut

# Bytes of the widest activation of a run of windows: what the caches of a core hold.
RUN_BYTES = 8 * 2**20


class AbsolutePosition(nn.Module):
    """Learned position of a token in its window: a row and a column table (paper section 3.2).

    Args:
        channels: Width C; even.
        window: Side p of a window in tokens.
    """

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.rows = nn.Parameter(torch.zeros(window, channels // 2))
        self.columns = nn.Parameter(torch.zeros(window, channels // 2))

    def forward(self) -> Tensor:
        """What to add at each place, row by row, [p * p, C]."""
        rows = self.rows[:, None].expand(-1, self.window, -1)
        columns = self.columns[None].expand(self.window, -1, -1)
        return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class RelativePosition(nn.Module):
    """Learned bias per head and offset of two tokens (Swin, arXiv 2103.14030, equation 4).

    Args:
        num_heads: Number of attention heads.
        window: Side p of a window in tokens.
    """

    def __init__(self, num_heads: int, window: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        side = torch.arange(window)
        place = torch.stack(torch.meshgrid(side, side, indexing='ij'), dim=-1).flatten(0, 1)
        offset = place[:, None] - place[None] + window - 1  # query minus key, from 0
        index = offset[..., 0] * (2 * window - 1) + offset[..., 1]
        self.register_buffer('index', index, persistent=False)

    def forward(self) -> Tensor:
        """Bias of the attention logits by place of query and key, [heads, p * p, p * p]."""
        bias = self.table[self.index.flatten()].view(*self.index.shape, -1)
        return bias.permute(2, 0, 1)


def _autocasts() -> bool:
    """Returns whether operations on a CPU run in a lower precision now."""
    if hasattr(torch.amp, 'is_autocast_available'):  # torch 2.4
        return torch.is_autocast_enabled('cpu')
    return torch.is_autocast_cpu_enabled()


class Linear(nn.Linear):
    """Linear layer that runs as a 1 x 1 convolution where that is faster: in float32 on a CPU.

    oneDNN, which computes convolutions, uses the whole width of AVX-512 on any maker's CPU and adds
    the bias on the way. The library behind ``F.linear`` may use half of it, and the bias is copied
    into the result first. In bfloat16 oneDNN computes both.
    """

    def forward(self, x: Tensor, activation: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Transform tokens, [..., in_features] -> [..., out_features], and apply an activation."""
        if not self._as_convolution(x):
            x = super().forward(x)
            return x if activation is None else activation(x)
        shape = x.shape[:-1]
        x = x.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # channels-last [1, C, T, 1]
        x = F.conv2d(x, self.weight[:, :, None, None], self.bias)
        if activation is not None:  # directly behind the convolution, where a compiler can fuse it
            x = activation(x)
        return x.permute(0, 2, 3, 1).reshape(*shape, self.out_features)

    @staticmethod
    def _as_convolution(x: Tensor) -> bool:
        return (
            x.device.type == 'cpu'
            and x.dtype == torch.float32
            and not _autocasts()
            and x.numel() > 0
            # Inductor of torch 2.11 cannot order the strides of its gradients at unknown sizes.
            and not (ops.are_used() and torch.is_grad_enabled())
        )


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window.

    Args:
        channels: Width C.
        window: Side p of a window in tokens.
        num_heads: Number of heads; divides C.
        position: Bias of the logits, or None.
        qkv_bias: Whether the projection to q, k and v has a bias.
        drop_rate: Dropout of the attention weights and of the output.
    """

    def __init__(
        self,
        channels: int,
        window: int,
        num_heads: int,
        position: RelativePosition | None,
        qkv_bias: bool,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.window, self.num_heads, self.drop_rate = window, num_heads, drop_rate
        self.position = position
        self.qkv = Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = Linear(channels, channels)

    def forward(
        self, x: Tensor, windows: Sequence[Windows] | Maps, sides: tuple[int, int]
    ) -> Tensor:
        """Mix the tokens of each window, [T, C] -> [T, C]; see :class:`Encoder`."""
        bias = None if self.position is None else self.position()
        drop_rate = self.drop_rate if self.training else 0.0
        out = ops.mix_windows(
            self.qkv(x), bias, windows, self.window, sides, self.num_heads, drop_rate
        )
        return F.dropout(self.proj(out), self.drop_rate, self.training)


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
        self.is_checkpointed = False
        self.fc1 = Linear(channels, hidden_channels)
        self.fc2 = Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens, [T, C] -> [T, C]."""
        if torch.is_grad_enabled() and not ops.is_traced():
            hidden = self.fc1(x)
            x = F.gelu(hidden)
            # A checkpoint keeps nothing anyhow, and has to see what it lets go of. Tensors of
            # tracers have no memory to know them by.
            saves = not self.is_checkpointed and x.__class__ is Tensor
            if saves and not (self.training and self.drop_rate):
                # What is saved for the second layer is computed again from what GELU saves.
                with _computed_again(x, F.gelu, hidden):
                    return self.fc2(x)
        else:
            x = self.fc1(x, F.gelu)
        x = F.dropout(x, self.drop_rate, self.training)
        return F.dropout(self.fc2(x), self.drop_rate, self.training)


def _computed_again(
    result: Tensor, function: Callable[[Tensor], Tensor], argument: Tensor
) -> AbstractContextManager:
    """Save ``function`` and its argument in place of its result, where a gradient needs that."""
    address = result.data_ptr()  # no reference: the result is to be freed

    def pack(tensor: Tensor) -> Tensor | tuple:
        if tensor.data_ptr() != address or tensor.numel() != argument.numel():
            return tensor
        return tensor.size(), tensor.stride(), tensor.dtype

    def unpack(saved: Tensor | tuple) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        size, stride, dtype = saved
        return function(argument).to(dtype).as_strided(size, stride)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


class Encoder(nn.Module):
    """Standard transformer encoder over the tokens of a window (STE, paper section 3.1).

    Args:
        channels: Width C.
        window: Side p of a window in tokens.
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
        self.position = AbsolutePosition(channels, window) if absolute else None
        bias = None if absolute else RelativePosition(num_heads, window)
        self.attn = WindowAttention(channels, window, num_heads, bias, qkv_bias, drop_rate)
        self.norm1 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, feedforward_channels, drop_rate)
        self.norm2 = nn.LayerNorm(channels)

    def forward(
        self, x: Tensor, windows: Sequence[Windows] | Maps, sides: tuple[int, int]
    ) -> Tensor:
        """Encode each window.

        Args:
            x: Tokens, [T, C].
            windows: What they are.
            sides: Sides of the large windows that they lie in, and of the small ones nested there.

        Returns:
            Tokens, [T, C].
        """
        if self.position is not None:  # before the first norm, so it runs through the residual too
            x = ops.add_position(x, self.position(), windows, self.window, sides)
        if self.pre_norm:
            x = x + self.attn(self.norm1(x), windows, sides)
            return x + self.ffn(self.norm2(x))
        x = self.norm1(x + self.attn(x, windows, sides))
        return self.norm2(x + self.ffn(x))


class WindowEncoders(nn.ModuleList):
    """The two encoders of a block, over one token order that serves both window sizes.

    Args:
        channels: Width C.
        windows: Window sides of the first and the second encoder; one divides the other.
        fused: Run the kernels of :mod:`contnet_mm.kernels` where they take the map.
        **kwargs: Further arguments of :class:`Encoder`.
    """

    def __init__(
        self, channels: int, windows: tuple[int, int], fused: bool = False, **kwargs
    ) -> None:
        self.sides, self.fused = (max(windows), min(windows)), fused
        super().__init__(Encoder(channels, window, **kwargs) for window in windows)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a channels-last map of any size, [B, C, H, W] -> [B, C, H, W]."""
        if self.fused and self._can_be_fused(x):
            return self._encode_fused(x)
        maps = Maps(x.shape[0], x.shape[2], x.shape[3])
        tokens = self._encode(ops.to_windows(x, self.sides), maps)
        return ops.to_map(tokens, maps, self.sides)

    def _can_be_fused(self, x: Tensor) -> bool:
        depth = x.shape[1] // self[0].attn.num_heads
        drops = self.training and self[0].ffn.drop_rate > 0
        return kernels.can_run(x, self.sides[0], depth, drops)

    def _encode_fused(self, x: Tensor) -> Tensor:
        from contnet_mm.kernels.encoder import encode  # needs Triton, which few CPUs have

        tokens = x.permute(0, 2, 3, 1)
        for encoder in self:
            tokens = encode(encoder, tokens)
        return tokens.permute(0, 3, 1, 2)

    def _encode(self, tokens: Tensor, maps: Maps) -> Tensor:
        if ops.are_used():
            return self._run(tokens, maps)
        windows = cut(maps.height, maps.width, self.sides[0], count=maps.batch)
        if tokens.device.type != 'cpu' or torch.is_grad_enabled():
            return self._run(tokens, windows)
        # Intermediate tensors of a whole map fit no cache, and the system hands out their memory
        # page by page, each time anew. Windows do not know of each other: a few at a time will do.
        hidden = self[0].ffn.fc1.out_features * tokens.dtype.itemsize
        out, start = torch.empty_like(tokens), 0
        for group in windows:
            length = max(1, RUN_BYTES // (hidden * area(group)))
            for first in range(0, group.count, length):
                run = Windows(min(length, group.count - first), group.height, group.width)
                stop = start + run.count * area(run)
                out[start:stop] = self._run(tokens[start:stop], [run])
                start = stop
        return out

    def _run(self, tokens: Tensor, windows: Sequence[Windows] | Maps) -> Tensor:
        for encoder in self:
            tokens = encoder(tokens, windows, self.sides)
        return tokens
