"""ConTNet as a researcher would write it straight from the paper.

NCHW maps, one module per operation, attention spelled out, windows cut out and put back by each
encoder. It works at multiples of 224 pixels; other images are padded to them. No windowing,
attention or block code is shared with the package, only its parameters have the same names, so that
one can be checked, and timed, against the other.
"""

import torch
import torch.nn.functional as F
from torch import nn

from contnet_mm.models.arch import resolve_arch

DIVISOR = 224  # pixels: 14 tokens at stride 16, 7 at stride 32
STRIDES = (4, 8, 16, 32)


class PlainConTNet(nn.Module):
    """The backbone: images [B, in_channels, H, W] -> four maps [B, C, H / stride, W / stride]."""

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
        """Maps of images whose sides are multiples of 224."""
        x = self.stem(x)
        maps = []
        for blocks in self.stages:
            for block in blocks:
                x, encoded = block(x)
            maps.append(encoded)
        maps[3] = x
        return tuple(maps)


class Stem(nn.Module):
    def __init__(self, in_channels, channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x):
        return self.pool(self.conv(x))


class DeepStem(nn.Module):
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
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)))
        x = self.relu(self.norm3(self.conv3(x)))
        return self.pool(x)


class Block(nn.Module):
    """Keeps width and size; gives its output and the map of its second encoder."""

    def __init__(self, channels, windows, encoder):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.encoders = nn.Sequential(*[Encoder(channels, side, **encoder) for side in windows])
        self.build_end(channels)

    def build_end(self, channels):
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.relu(self.norm(x))
        r = self.encoders(y)
        return self.end(x, y, r), r

    def end(self, x, y, r):
        return self.conv(r) + x


class DownBlock(Block):
    """Doubles the width and halves the size."""

    def __init__(self, channels, windows, encoder, avg_down):
        self.avg_down = avg_down
        super().__init__(channels, windows, encoder)

    def build_end(self, channels):
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.pool = nn.AvgPool2d(2) if self.avg_down else nn.Identity()
        stride = 1 if self.avg_down else 2
        self.downsample = nn.Conv2d(channels, 2 * channels, 1, stride=stride, bias=False)

    def end(self, x, y, r):
        return self.conv(r) + self.downsample(self.pool(y))


class LastBlock(Block):
    """Doubles the width."""

    def __init__(self, channels, windows, encoder, drop):
        super().__init__(channels, windows, encoder)
        self.dropout = nn.Dropout(drop)

    def build_end(self, channels):
        self.conv = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.downsample = nn.Conv2d(channels, 2 * channels, 1, bias=False)

    def end(self, x, y, r):
        return self.dropout(self.conv(r) + self.downsample(y))


class Encoder(nn.Module):
    """Standard transformer encoder inside each window of a map, [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels, side, num_heads, hidden, drop, position, pre_norm, qkv_bias):
        super().__init__()
        self.side, self.pre_norm = side, pre_norm
        relative = position == 'relative'
        self.position = None if relative else AbsolutePosition(channels, side)
        self.attn = Attention(channels, side, num_heads, drop, relative, qkv_bias)
        self.norm1 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden, drop)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x):
        batch, channels, height, width = x.shape
        p = self.side
        rows, columns = height // p, width // p
        x = x.view(batch, channels, rows, p, columns, p)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(-1, p * p, channels)
        x = self.encode(x)
        x = x.view(batch, rows, columns, p, p, channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)

    def encode(self, x):
        if self.position is not None:
            x = self.position(x)
        if self.pre_norm:
            x = x + self.attn(self.norm1(x))
            return x + self.ffn(self.norm2(x))
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.ffn(x))


class AbsolutePosition(nn.Module):
    """A row table for the first half of the channels, a column table for the second."""

    def __init__(self, channels, side):
        super().__init__()
        self.side = side
        self.rows = nn.Parameter(torch.zeros(side, channels // 2))
        self.columns = nn.Parameter(torch.zeros(side, channels // 2))

    def forward(self, x):
        p = self.side
        rows = self.rows.unsqueeze(1).expand(p, p, -1)
        columns = self.columns.unsqueeze(0).expand(p, p, -1)
        return x + torch.cat([rows, columns], dim=-1).reshape(p * p, -1)


class RelativePosition(nn.Module):
    """A learned bias for each head and each offset between two tokens."""

    def __init__(self, num_heads, side):
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        place = torch.arange(side * side)
        row, column = place // side, place % side
        down = row[:, None] - row[None] + side - 1
        right = column[:, None] - column[None] + side - 1
        self.register_buffer('index', down * (2 * side - 1) + right, persistent=False)

    def forward(self, logits):
        return logits + self.table[self.index].permute(2, 0, 1)


class Attention(nn.Module):
    def __init__(self, channels, side, num_heads, drop, relative, qkv_bias):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.position = RelativePosition(num_heads, side) if relative else None
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.attn_drop = nn.Dropout(drop)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x):
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
    def __init__(self, channels, hidden, drop):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)
        self.drop1, self.drop2 = nn.Dropout(drop), nn.Dropout(drop)

    def forward(self, x):
        x = self.drop1(self.gelu(self.fc1(x)))
        return self.drop2(self.fc2(x))
