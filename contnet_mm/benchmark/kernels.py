"""Time the sublayers of encoders one by one: kernels of attention, and the fused kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor

from contnet_mm.benchmark.measure import reason_of
from contnet_mm.benchmark.plan import Size
from contnet_mm.models import window_attention as attention
from contnet_mm.models.arch import ARCHS
from contnet_mm.models.encoder import Encoder, tensors_of_attention, tensors_of_feed_forward
from contnet_mm.models.mode import choose_mode
from contnet_mm.models.window_layout import WindowLayout, window_layout
from contnet_mm.utils.markdown import make_table

# Of an H100 with HBM3; what a copy reaches is a tenth less.
PEAK_BYTES_PER_SECOND = 3.35e12
STRIDE = 4  # pixels of a token of the first stage
ATTENTION_KERNELS = ('flash', 'efficient', 'padded')  # what HALF_PRECISION_KERNEL may be
Timer = Callable[[Callable[[], object]], float]  # returns the milliseconds of a call


@dataclass(frozen=True)
class Sublayer:
    """Half an encoder, attention or feed-forward, with its residual and norm, on a map.

    Args:
        stage: From 1.
        kind: ``'attention'`` or ``'mlp'``.
        window_size: Side of its windows in tokens; 0 for feed-forward.
        count: Number of such sublayers in the network.
        encoder: That it belongs to.
        x: Map, [B, H, W, C].
    """

    stage: int
    kind: str
    window_size: int
    count: int
    encoder: Encoder
    x: Tensor

    def make_layout(self) -> WindowLayout:
        """Return the layout of the map for attention."""
        batch, height, width, channels = self.x.shape
        head_dim = channels // self.encoder.attn.num_heads
        way = attention.choose_way(self.x.device, self.x.dtype, head_dim)
        return window_layout(height, width, (self.window_size,) * 2, way, batch, self.x.device)

    def function(self, fused: bool) -> Callable[[Tensor], Tensor]:
        """Return the function of the map that is timed."""
        if fused:
            from contnet_mm.models.kernels.encoder import attend, feed_forward

            if self.kind == 'attention':
                return lambda x: attend(x, **tensors_of_attention(self.encoder))
            return lambda x: feed_forward(x, **tensors_of_feed_forward(self.encoder))
        if self.kind == 'attention':
            layout = self.make_layout()
            # The tokens are taken to be in window order, which a block brings them into once.
            return lambda x: self.encoder.attend(x.flatten(1, 2), layout)
        return lambda x: self.encoder.feed_forward(x.flatten(1, 2), choose_mode(is_traced=False))

    def make_step(self, fused: bool, backward: bool) -> Callable[[], object]:
        """Return what is timed: the forward pass alone without gradients, or both passes.

        Both passes return the gradients by the map and by all parameters.
        """
        function, x = self.function(fused), self.x.detach().requires_grad_(backward)
        parameters = [p for p in self.encoder.parameters() if p.requires_grad]

        def forward():
            with torch.no_grad():
                return function(x)

        def both():
            out = function(x)
            inputs, grad = [x, *parameters], torch.ones_like(out)
            return torch.autograd.grad(out, inputs, grad, allow_unused=True)

        return both if backward else forward


def make_sublayers(arch: str, size: Size, device: str, dtype: torch.dtype) -> Iterator[Sublayer]:
    """Make sublayers and their maps for each stage and window size of an arch, by its name."""
    settings = ARCHS[arch]
    for i, windows in enumerate(settings['window_sizes']):
        channels, stride = settings['base_channels'] * 2**i, STRIDE * 2**i
        height, width = (-(-side // stride) for side in (size.height, size.width))
        x = torch.randn(size.batch, height, width, channels, device=device, dtype=dtype)
        depth = settings['depths'][i]
        for window in dict.fromkeys(windows):
            encoder = Encoder(
                channels,
                window,
                window,
                settings['num_heads'][i],
                settings['feedforward_channels'][i],
                'absolute',
                pre_norm=False,
                qkv_bias=True,
                drop_rate=0.0,
            ).to(device, dtype)
            yield Sublayer(i + 1, 'attention', window, depth * windows.count(window), encoder, x)
        yield Sublayer(i + 1, 'mlp', 0, depth * len(windows), encoder, x)


def measure(sublayer: Sublayer, timer: Timer) -> list[dict]:
    """Time a sublayer, forward and with the backward pass, fused and not.

    Returns:
        A row for each pass; a kernel that fails has the reason in place of its time.
    """
    rows = []
    # No kernel can avoid to read and write the map; backward, to read it and both gradients.
    for backward, transfers in ((False, 2), (True, 5)):
        row = dict(
            stage=sublayer.stage,
            half=f'{sublayer.kind} {sublayer.window_size or ""}'.strip(),
            channels=sublayer.x.shape[-1],
            backward=backward,
            portable_ms=None,
            least_mb=transfers * sublayer.x.numel() * sublayer.x.itemsize / 1e6,
            fused_ms=None,
            error=None,
        )
        try:
            row['portable_ms'] = timer(sublayer.make_step(False, backward))
            row['fused_ms'] = timer(sublayer.make_step(True, backward))
        except Exception as error:  # such as shared memory that does not suffice
            row['error'] = reason_of(error)
        rows.append(row)
    return rows


def render(rows: Sequence[dict]) -> str:
    """Write the rows of :func:`measure` as a Markdown table."""
    header = ['stage', 'C', 'half', 'pass', 'fused ms', 'portable ms', 'fused / portable']
    lines = []
    for row in rows:
        name = 'forward and backward' if row['backward'] else 'forward'
        line = [row['stage'], row['channels'], row['half'], name]
        if row['error'] is None:
            speed = row['least_mb'] * 1e6 / (row['fused_ms'] / 1e3)
            ratio = row['fused_ms'] / row['portable_ms']
            line += [f'{row["fused_ms"]:.3f}', f'{row["portable_ms"]:.3f}', f'{ratio:.2f}']
            line += [f'{speed / 1e12:.2f}', f'{speed / PEAK_BYTES_PER_SECOND:.0%}']
        else:
            line += [f'failed: {row["error"]}', '-', '-', '-', '-']
        lines.append(line)
    return make_table([*header, 'TB/s', 'of peak'], lines)


def measure_attention(sublayer: Sublayer, timer: Timer) -> dict:
    """Time a training step of the attention in a sublayer, by each kernel for half precision.

    Args:
        sublayer: Of kind ``'attention'``; queries, keys and values have the dtype of its map.
        timer: Returns the milliseconds of a call.

    Returns:
        ``stage``, ``window``, ``count`` (encoders of that kind in the network) and the
        milliseconds by kernel, None where it failed.
    """
    tokens, window = sublayer.x.flatten(1, 2), sublayer.window_size
    qkv, grad = tokens.repeat(1, 1, 3).requires_grad_(), torch.randn_like(tokens)
    row = dict(stage=sublayer.stage, window=window, count=sublayer.count)
    for name in ATTENTION_KERNELS:
        with patch.object(attention, 'HALF_PRECISION_KERNEL', name):
            layout, heads = sublayer.make_layout(), sublayer.encoder.attn.num_heads

            def step(layout=layout, heads=heads):
                out = attention.window_attention(qkv, None, layout, window, heads)
                return torch.autograd.grad(out, qkv, grad)

            try:
                row[name] = timer(step)
            except Exception as error:  # a kernel that this GPU does not have
                print(f'{name}, stage {sublayer.stage}, window {window}: {reason_of(error)}')
                row[name] = None
    return row


def render_attention(rows: Sequence[dict]) -> str:
    """Write rows as a Markdown table, with the sum over the network and which kernel to set."""
    sums = {
        name: sum(row['count'] * row[name] for row in rows)
        for name in ATTENTION_KERNELS
        if all(row[name] is not None for row in rows)
    }
    total = dict(stage='all', window='', count=sum(row['count'] for row in rows), **sums)
    lines = []
    for row in [*rows, total]:
        times = [row.get(name) for name in ATTENTION_KERNELS]
        shown = ['failed' if ms is None else f'{ms:.3f}' for ms in times]
        lines.append([row['stage'], row['window'], row['count'], *shown])
    header = ['stage', 'window', 'encoders', *(f'{name} ms' for name in ATTENTION_KERNELS)]
    text = make_table(header, lines, numbers=len(ATTENTION_KERNELS))
    if sums:
        best = min(sums, key=sums.get)
        text += f'\nSet HALF_PRECISION_KERNEL = {best!r} in models/window_attention.py.\n'
    return text
