"""Times the ways to compute window attention in half precision, and says which to set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from contnet_mm.benchmark.plan import Size
from contnet_mm.models import window_attention as attention
from contnet_mm.models.arch import ARCHS
from contnet_mm.models.window_layout import window_layout

STRIDE = 4  # pixels of a token of the first stage
KERNELS = ('flash', 'efficient', 'padded')  # what HALF_PRECISION_KERNEL may be


@contextmanager
def half_precision_kernel(name: str) -> Iterator[None]:
    """Set the constant of :mod:`contnet_mm.models.window_attention` for a while."""
    before = attention.HALF_PRECISION_KERNEL
    attention.HALF_PRECISION_KERNEL = name
    try:
        yield
    finally:
        attention.HALF_PRECISION_KERNEL = before


def measure_ways(
    arch: str,
    size: Size,
    device: str,
    dtype: torch.dtype,
    timer: Callable[[Callable[[], None]], float],
) -> list[dict]:
    """Time a training step of the attention of each stage and window size, by each kernel.

    Args:
        arch: A name of ``ARCHS``.
        size: Of the images.
        device: Where to.
        dtype: Of queries, keys and values.
        timer: Tells how many milliseconds a call takes.

    Returns:
        A row for each stage and window size: ``stage``, ``window``, ``count`` (encoders of that
        kind in the network) and the milliseconds by kernel, None where it failed.
    """
    settings, rows = ARCHS[arch], []
    for stage, windows in enumerate(settings['window_sizes']):
        channels, stride = settings['base_channels'] * 2**stage, STRIDE * 2**stage
        height, width = (-(-side // stride) for side in (size.height, size.width))
        heads = settings['num_heads'][stage]
        shape = (size.batch, height * width, 3 * channels)
        qkv = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
        grad = torch.randn_like(qkv[..., :channels])
        for window in dict.fromkeys(windows):
            count = settings['depths'][stage] * windows.count(window)
            row = dict(stage=stage + 1, window=window, count=count)
            for name in KERNELS:
                with half_precision_kernel(name):
                    way = attention.choose_way(qkv.device, dtype, channels // heads)
                    layout = window_layout(height, width, windows, way, size.batch, device)

                    def step(layout=layout, window=window, qkv=qkv, grad=grad, heads=heads):
                        out = attention.window_attention(qkv, None, layout, window, heads)
                        torch.autograd.grad(out, qkv, grad)

                    try:
                        row[name] = timer(step)
                    except Exception as error:  # a kernel that this GPU does not have
                        print(f'{name}, stage {stage + 1}, window {window}: {error}')
                        row[name] = None
            rows.append(row)
    return rows


def render_ways(rows: Sequence[dict]) -> str:
    """Write the rows as a Markdown table, with the sum over the network and what to set."""

    def spell(ms: float | None) -> str:
        return 'failed' if ms is None else f'{ms:.3f}'

    lines = [f'| stage | window | encoders | {" | ".join(f"{k} ms" for k in KERNELS)} |']
    lines.append('| --- | --- | --- | ---: | ---: | ---: |')
    for row in rows:
        cells = [row['stage'], row['window'], row['count'], *(spell(row[k]) for k in KERNELS)]
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    sums = {
        name: sum(row['count'] * row[name] for row in rows)
        for name in KERNELS
        if all(row[name] is not None for row in rows)
    }
    cells = ['all', '', sum(row['count'] for row in rows), *(spell(sums.get(k)) for k in KERNELS)]
    lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    if sums:
        best = min(sums, key=sums.get)
        lines += ['', f'Set HALF_PRECISION_KERNEL = {best!r} in models/window_attention.py.']
    return '\n'.join(lines) + '\n'
