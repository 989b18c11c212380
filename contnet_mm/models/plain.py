"""The reference implementation of ConTNet: the paper in plain PyTorch, not optimised.

Read this first. Maps are [B, C, H, W], each operation is a module, attention is written out, and
each encoder partitions its map into windows and puts them back. Images are padded to multiples of
224 pixels. No other code of the package is used but the table of archs. Parameters have the same
names as those of :class:`~contnet_mm.models.contnet.ConTNet`, so that both can be checked, and
timed, against each other.
"""

import torch
import torch.nn.functional as F
from torch import nn

from contnet_mm.models.arch import resolve_arch

DIVISOR = 224  # pixels: 14 tokens at stride 16, 7 at stride 32
STRIDES = (4, 8, 16, 32)


class PlainConTNet(nn.Module):
    """ConTNet as a backbone (arXiv 2104.13497).

    Args:
        arch: A name or a dict, as for :class:`~contnet_mm.models.contnet.ConTNet`.
        in_channels: Number of channels of the images.
        position: ``'absolute'`` or ``'relative'``.
        pre_norm: Normalise before attention and feed-forward instead of after their sums.
        qkv_bias: Whether q, k and v have a bias.
        avg_down: Down-sample the shortcut by average pooling instead of a stride.
        deep_stem: Use three 3x3 convolutions instead of one 7x7.
    """

    def __init__(
        self,
        arch='medium',
        in_channels=3,
        position='absolute',
        pre_norm=False,
        qkv_bias=True,
        avg_down=False,
        deep_stem=False,
    ):
        super().__init__()
        arch = resolve_arch(arch)
        base = arch['base_channels']
        self.stem = DeepStem(in_channels, base) if deep_stem else Stem(in_channels, base)
        self.stages = nn.ModuleList()
        for stage in range(4):
            channels, depth = base * 2**stage, arch['depths'][stage]
            encoder = dict(
                num_heads=arch['num_heads'][stage],
                hidden=arch['feedforward_channels'][stage],
                drop=arch['drop_rates'][stage],
                position=position,
                pre_norm=pre_norm,
                qkv_bias=qkv_bias,
            )
            windows = arch['window_sizes'][stage]
            blocks = [Block(channels, windows, encoder) for _ in range(depth - 1)]
            if stage < 3:
                blocks.append(DownBlock(channels, windows, encoder, avg_down))
            else:
                blocks.append(LastBlock(channels, windows, encoder, arch['last_drop_rate']))
            self.stages.append(nn.ModuleList(blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x):
        """Compute the maps of images of any size.

        Args:
            x: Images, [B, in_channels, H, W].

        Returns:
            Four maps, [B, C, ceil(H / stride), ceil(W / stride)] with strides 4, 8, 16 and 32.
        """
        height, width = x.shape[2:]
        bottom, right = -height % DIVISOR, -width % DIVISOR
        if not bottom and not right:
            return self.core(x)
        maps = self.core(F.pad(x, (0, right, 0, bottom)))
        return tuple(
            y[:, :, : -(-height // stride), : -(-width // stride)]
            for y, stride in zip(maps, STRIDES, strict=True)
        )

    def core(self, x):
        """Compute the four maps of images whose sides are multiples of 224."""
        x = self.stem(x)
        maps = []
        for blocks in self.stages:
            for block in blocks:
                x, encoded = block(x)
            maps.append(encoded)
        maps[3] = x
        return tuple(maps)


class Stem(nn.Module):
    """Reduce the resolution by 4."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x):
        """Compute the first map, [B, in_channels, H, W] -> [B, C, H / 4, W / 4]."""
        return self.pool(self.conv(x))


class DeepStem(nn.Module):
    """Reduce the resolution by 4, with three 3x3 convolutions instead of one 7x7."""

    def __init__(self, in_channels, channels):
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(in_channels, half, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, channels, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x):
        """Compute the first map, [B, in_channels, H, W] -> [B, C, H / 4, W / 4]."""
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)))
        x = self.relu(self.norm3(self.conv3(x)))
        return self.pool(x)


class Block(nn.Module):
    """ConT block: norm, two encoders, a convolution and a shortcut (paper section 3.1).

    This one keeps the number of channels and the resolution.
    """

    def __init__(self, channels, windows, encoder):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.encoders = nn.Sequential(*[Encoder(channels, size, **encoder) for size in windows])
        self.build_end(channels)

    def build_end(self, channels):
        """Build what follows the encoders."""
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        """Return the output of the block and the map of its second encoder, [B, C, H, W]."""
        y = self.relu(self.norm(x))
        r = self.encoders(y)
        return self.end(x, y, r), r

    def end(self, x, y, r):
        """Convolve the encoded map r, and add the shortcut from the input x or its norm y."""
        return self.conv(r) + x


class DownBlock(Block):
    """Last block of a stage: double the channels and halve the resolution."""

    def __init__(self, channels, windows, encoder, avg_down):
        self.avg_down = avg_down
        super().__init__(channels, windows, encoder)

    def build_end(self, channels):
        """Build what follows the encoders."""
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.pool = nn.AvgPool2d(2) if self.avg_down else nn.Identity()
        stride = 1 if self.avg_down else 2
        self.downsample = nn.Conv2d(channels, 2 * channels, 1, stride=stride, bias=False)

    def end(self, x, y, r):
        """Convolve and add, [B, C, H, W] -> [B, 2 C, H / 2, W / 2]."""
        return self.conv(r) + self.downsample(self.pool(y))


class LastBlock(Block):
    """Last block of the network: double the channels and keep the resolution."""

    def __init__(self, channels, windows, encoder, drop):
        super().__init__(channels, windows, encoder)
        self.dropout = nn.Dropout(drop)

    def build_end(self, channels):
        """Build what follows the encoders."""
        self.conv = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.downsample = nn.Conv2d(channels, 2 * channels, 1, bias=False)

    def end(self, x, y, r):
        """Project and add, [B, C, H, W] -> [B, 2 C, H, W]."""
        return self.dropout(self.conv(r) + self.downsample(y))


class Encoder(nn.Module):
    """Standard transformer encoder inside each window of a map (STE, paper section 3.1)."""

    def __init__(
        self, channels, window_size, num_heads, hidden, drop, position, pre_norm, qkv_bias
    ):
        super().__init__()
        self.window_size, self.pre_norm = window_size, pre_norm
        relative = position == 'relative'
        self.position = None if relative else AbsolutePosition(channels, window_size)
        self.attn = Attention(channels, window_size, num_heads, drop, relative, qkv_bias)
        self.norm1 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden, drop)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x):
        """Encode all windows of a map, [B, C, H, W] -> [B, C, H, W]."""
        batch, channels, height, width = x.shape
        p = self.window_size
        rows, columns = height // p, width // p
        x = x.view(batch, channels, rows, p, columns, p)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(-1, p * p, channels)
        x = self.encode(x)
        x = x.view(batch, rows, columns, p, p, channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)

    def encode(self, x):
        """Encode windows of P tokens, [windows, P, C] -> [windows, P, C]."""
        if self.position is not None:
            x = self.position(x)
        if self.pre_norm:
            x = x + self.attn(self.norm1(x))
            return x + self.ffn(self.norm2(x))
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.ffn(x))


class AbsolutePosition(nn.Module):
    """Learned position of a token in its window (paper section 3.2).

    The first half of the channels depends on the row, the second on the column.
    """

    def __init__(self, channels, window_size):
        super().__init__()
        self.window_size = window_size
        self.rows = nn.Parameter(torch.zeros(window_size, channels // 2))
        self.columns = nn.Parameter(torch.zeros(window_size, channels // 2))

    def forward(self, x):
        """Add the positions to windows, [windows, P, C] -> [windows, P, C]."""
        p = self.window_size
        rows = self.rows.unsqueeze(1).expand(p, p, -1)
        columns = self.columns.unsqueeze(0).expand(p, p, -1)
        return x + torch.cat([rows, columns], dim=-1).reshape(p * p, -1)


class RelativePosition(nn.Module):
    """Learned bias per head and offset of two tokens (Swin, arXiv 2103.14030, equation 4)."""

    def __init__(self, num_heads, window_size):
        super().__init__()
        offsets = 2 * window_size - 1  # per direction
        self.table = nn.Parameter(torch.zeros(offsets**2, num_heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        token = torch.arange(window_size**2)
        row, column = token // window_size, token % window_size
        down = row[:, None] - row[None] + window_size - 1
        right = column[:, None] - column[None] + window_size - 1
        self.register_buffer('index', down * offsets + right, persistent=False)

    def forward(self, logits):
        """Add the bias, [windows, heads, P, P] -> [windows, heads, P, P]."""
        return logits + self.table[self.index].permute(2, 0, 1)


class Attention(nn.Module):
    """Multi-head self-attention among the tokens of each window."""

    def __init__(self, channels, window_size, num_heads, drop, relative, qkv_bias):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.position = RelativePosition(num_heads, window_size) if relative else None
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.attn_drop = nn.Dropout(drop)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x):
        """Attend, [windows, P, C] -> [windows, P, C]."""
        windows, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        logits = (q * self.scale) @ k.transpose(-2, -1)
        if self.position is not None:
            logits = self.position(logits)
        weights = self.attn_drop(logits.softmax(dim=-1))
        x = (weights @ v).transpose(1, 2).reshape(windows, tokens, channels)
        return self.proj_drop(self.proj(x))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels, hidden, drop):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)
        self.drop1, self.drop2 = nn.Dropout(drop), nn.Dropout(drop)

    def forward(self, x):
        """Transform each token, [windows, P, C] -> [windows, P, C]."""
        x = self.drop1(self.gelu(self.fc1(x)))
        return self.drop2(self.fc2(x))
