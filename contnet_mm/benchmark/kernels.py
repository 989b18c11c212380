"""Times the fused kernels one by one on a GPU, beside the portable path and the roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contnet_mm.benchmark.plan import Size
from contnet_mm.models.arch import ARCHS
from contnet_mm.models.encoder import (
    Encoder,
    tensors_of_attention,
    tensors_of_feed_forward,
)
from contnet_mm.models.mode import choose_mode
from contnet_mm.models.window_attention import choose_way
from contnet_mm.models.window_layout import WindowLayout, window_layout

# Of an H100 with HBM3; what a copy reaches is a tenth less.
PEAK_BYTES_PER_SECOND = 3.35e12
STRIDE = 4  # pixels of a token of the first stage


@dataclass(frozen=True)
class Half:
    """Half an encoder on a map.

    Args:
        stage: From 1.
        kind: ``'attention'`` or ``'mlp'``.
        window: Side of its windows in tokens; 0 if it has none.
        encoder: That it belongs to.
        x: Map, [B, H, W, C].
    """

    stage: int
    kind: str
    window: int
    encoder: Encoder
    x: Tensor

    def run(self, fused: bool) -> Callable[[Tensor], Tensor]:
        """Give the function of the map that is timed."""
        if fused:
            from contnet_mm.models.kernels.encoder import attend, feed_forward

            if self.kind == 'attention':
                return lambda x: attend(x, **tensors_of_attention(self.encoder))
            return lambda x: feed_forward(x, **tensors_of_feed_forward(self.encoder))
        if self.kind == 'attention':
            layout = self._layout()
            # Tokens count as in the order of windows already, which a block brings them into once.
            return lambda x: self.encoder.attend(x.flatten(1, 2), layout)
        return lambda x: self.encoder.feed_forward(x.flatten(1, 2), choose_mode(is_traced=False))

    def least_bytes(self, backward: bool) -> int:
        """Bytes that cannot be avoided: the map read and written, and its gradients."""
        passes = 5 if backward else 2  # forward: in, out; then: in, and two gradients
        return passes * self.x.numel() * self.x.itemsize

    def _layout(self) -> WindowLayout:
        batch, height, width, channels = self.x.shape
        head_dim = channels // self.encoder.attn.num_heads
        way = choose_way(self.x.device, self.x.dtype, head_dim)
        return window_layout(height, width, (self.window,) * 2, way, batch, self.x.device)


def make_halves(arch: str, size: Size, device: str, dtype: torch.dtype) -> Iterator[Half]:
    """Make both halves of an encoder for each stage and window of an arch.

    Args:
        arch: A name of ``ARCHS``.
        size: Of the images.
        device: Where to.
        dtype: Of weights and maps.
    """
    settings = ARCHS[arch]
    for i in range(len(settings['depths'])):
        channels, stride = settings['base_channels'] * 2**i, STRIDE * 2**i
        height, width = (-(-side // stride) for side in (size.height, size.width))
        x = torch.randn(size.batch, height, width, channels, device=device, dtype=dtype)
        for window in dict.fromkeys(settings['window_sizes'][i]):
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
            yield Half(i + 1, 'attention', window, encoder, x)
        yield Half(i + 1, 'mlp', 0, encoder, x)


def one_pass(half: Half, fused: bool, backward: bool) -> Callable[[], None]:
    """Give what is timed: the forward pass alone without gradients, or both passes."""
    run, x = half.run(fused), half.x.detach().requires_grad_(backward)
    parameters = [p for p in half.encoder.parameters() if p.requires_grad]

    def forward() -> None:
        with torch.no_grad():
            run(x)

    def both() -> None:
        out = run(x)
        torch.autograd.grad(out, [x, *parameters], torch.ones_like(out), allow_unused=True)

    return both if backward else forward


def measure(half: Half, timer: Callable[[Callable[[], None]], float]) -> list[dict]:
    """Time a half, forward and with the backward pass, fused and not.

    Args:
        half: What to time.
        timer: Tells how many milliseconds a call takes.

    Returns:
        A row for each pass; a kernel that fails has the reason in place of its time.
    """
    rows = []
    for backward in (False, True):
        row = dict(
            stage=half.stage,
            half=f'{half.kind} {half.window or ""}'.strip(),
            channels=half.x.shape[-1],
            backward=backward,
            portable_ms=None,
            least_mb=half.least_bytes(backward) / 1e6,
            fused_ms=None,
            error=None,
        )
        try:
            row['portable_ms'] = timer(one_pass(half, False, backward))
            row['fused_ms'] = timer(one_pass(half, True, backward))
        except Exception as error:  # such as shared memory that does not suffice
            row['error'] = f'{type(error).__name__}: {str(error).splitlines()[0]}'
        rows.append(row)
    return rows


def render(rows: Sequence[dict]) -> str:
    """Write the rows as a Markdown table."""
    lines = [
        '| stage | C | half | pass | fused ms | portable ms | fused / portable | TB/s | of peak |',
        '| --- | --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    for row in rows:
        name = 'forward and backward' if row['backward'] else 'forward'
        cells = [row['stage'], row['channels'], row['half'], name]
        if row['error'] is None:
            speed = row['least_mb'] * 1e6 / (row['fused_ms'] / 1e3)
            ratio = row['fused_ms'] / row['portable_ms']
            cells += [f'{row["fused_ms"]:.3f}', f'{row["portable_ms"]:.3f}', f'{ratio:.2f}']
            cells += [f'{speed / 1e12:.2f}', f'{speed / PEAK_BYTES_PER_SECOND:.0%}']
        else:
            cells += [f'failed: {row["error"]}', '-', '-', '-', '-']
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join(lines) + '\n'
