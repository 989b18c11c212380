"""Pictures of fields, attention and class activation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from contnet_mm.visualization.attention import AttentionInWindow
from contnet_mm.visualization.receptive_field import side_holding

SHARES = {0.5: 'solid', 0.95: 'dashed'}  # of a field, and the lines around them
FAINTEST = 1e-4  # of the largest value of a field, the darkest colour
HEAT = 'inferno'
Box = tuple[int, int, int, int]  # edges in pixels: top, left, bottom, right


def draw_fields(networks: Sequence[tuple[str, Tensor, Sequence[int]]], number: int) -> Figure:
    """Draw the fields of networks below one another, a column for each map.

    Args:
        networks: Name, fields [maps, side, side], and stride of each map in pixels.
        number: Number of images that the fields are a mean of.
    """
    columns = max(len(fields) for _, fields, _ in networks)
    figure = Figure(figsize=(2.9 * columns + 1.6, 3.1 * len(networks) + 0.6), layout='constrained')
    grid = figure.subplots(len(networks), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for row, (name, fields, strides) in zip(grid, networks, strict=True):
        for axes, field, stride in zip(row, fields, strides, strict=False):
            axes.set_visible(True)
            shown = _draw_field(axes, field)
            holding = ', '.join(f'{share:.0%} in {side_holding(field, share)}' for share in SHARES)
            axes.set_title(f'stride {stride}\n{holding} pixels', fontsize=10)
        row[0].set_ylabel(f'{name}\n\npixels from the position', fontsize=10)
    bar = figure.colorbar(shown, ax=grid, fraction=0.03, extend='min')
    bar.set_label(f'mean gradient over {number} images, its largest value = 1')
    lines = [Rectangle((0, 0), 1, 1, fill=False, ec='C9', ls=style) for style in SHARES.values()]
    names = [f'smallest square that holds {share:.0%} of the field' for share in SHARES]
    figure.legend(lines, names, loc='outside lower center', ncols=len(lines), frameon=False)
    return figure


def _draw_field(axes: Axes, field: Tensor) -> object:
    half = len(field) / 2
    shown = axes.imshow(
        (field / field.max()).clamp(min=FAINTEST).numpy(),
        cmap=HEAT,
        norm=LogNorm(FAINTEST, 1),
        extent=(-half, half, half, -half),
    )
    for share, style in SHARES.items():
        side = side_holding(field, share)
        axes.add_patch(
            Rectangle((-side / 2, -side / 2), side, side, fill=False, ec='C9', lw=1.2, ls=style)
        )
    axes.set(xticks=[-half, 0, half], yticks=[-half, 0, half])
    axes.tick_params(labelsize=8)
    return shown


def draw_attention(
    name: str, pixels: np.ndarray, windows: Sequence[AttentionInWindow], row: int, column: int
) -> Figure:
    """Draw an image with the windows around a pixel, and beside it the attention in each of them.

    A value is the weight of a token over the mean of all, a mean over heads.

    Args:
        name: Of the network and its weights.
        pixels: RGB, [h, w, 3].
        windows: One per stage.
        row: Of the pixel.
        column: Of the pixel.
    """
    maps = [window.of_query().numpy() * len(window.tokens) for window in windows]
    norm = LogNorm(0.1, max(10, *(m.max() for m in maps)))
    views = [(0, 0, *pixels.shape[:2]), *(_around(w.box, *pixels.shape[:2]) for w in windows)]
    ratios = [(right - left) / (bottom - top) for top, left, bottom, right in views]
    panel = min(3.2, 16 / sum(ratios))  # inches of height
    figure = Figure(figsize=(panel * sum(ratios) + 1, panel + 0.7), layout='constrained')
    image, *panels = figure.subplots(1, len(views), width_ratios=ratios)
    image.imshow(pixels)
    image.set_title(name, fontsize=10)
    for number, (axes, window, weights) in enumerate(zip(panels, windows, maps, strict=True)):
        axes.imshow(pixels.mean(-1), cmap='gray', vmin=0, vmax=255)
        seen = weights.clip(min=norm.vmin)
        shown = axes.imshow(seen, cmap=HEAT, norm=norm, alpha=0.7, extent=_extent(window.box))
        for frame in (image, axes):  # wider windows below, with a wider line
            frame.add_patch(_outline(window.box, f'C{number}', 1.5 * (number + 1), 9 - number))
        tokens = f'{weights.shape[0]} x {weights.shape[1]} tokens of {window.stride} pixels'
        axes.set_title(f'stage {number + 1}\n{tokens}', fontsize=10, color=f'C{number}')
    for axes, view in zip((image, *panels), views, strict=True):
        axes.set(xlim=_extent(view)[:2], ylim=_extent(view)[2:])
        axes.plot(column, row, '+', color='cyan', markersize=11, markeredgewidth=2, zorder=10)
        axes.set(xticks=[], yticks=[])
    bar = figure.colorbar(shown, ax=panels, fraction=0.03, shrink=0.85, extend='min')
    bar.set_label('attention of the token at +\n(1: all tokens alike)')
    bar.solids.set_alpha(1)
    return figure


def _around(box: Box, height: int, width: int) -> Box:
    """Return a window with half of it on each side, or with what there is of the image."""
    top, left, bottom, right = box
    pad = max(bottom - top, right - left) // 2
    return max(top - pad, 0), max(left - pad, 0), min(bottom + pad, height), min(right + pad, width)


def _extent(box: Box) -> tuple[float, ...]:
    """Return left, right, bottom and top for matplotlib, which draws pixels around coordinates."""
    top, left, bottom, right = (edge - 0.5 for edge in box)
    return left, right, bottom, top


def _outline(box: Box, colour: str, width: float, zorder: int) -> Rectangle:
    left, right, bottom, top = _extent(box)
    size = right - left, bottom - top
    return Rectangle((left, top), *size, fill=False, ec=colour, lw=width, zorder=zorder)


def draw_activation(name: str, pixels: np.ndarray, heat: np.ndarray, what: str) -> Figure:
    """Draw an image, and beside it where it speaks for a class.

    Args:
        name: Of the network and its weights.
        pixels: RGB, [h, w, 3].
        heat: From 0 to 1, [h, w].
        what: The class, and what the model makes of it.
    """
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(7.2 * width / height + 1, 4), layout='constrained')
    image, panel = figure.subplots(1, 2)
    image.imshow(pixels)
    image.set_title(name, fontsize=10)
    panel.imshow(pixels.mean(-1), cmap='gray', vmin=0, vmax=255)
    shown = panel.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.6)
    panel.set_title(what, fontsize=10)
    for axes in (image, panel):
        axes.set(xticks=[], yticks=[])
    bar = figure.colorbar(shown, ax=panel, fraction=0.05)
    bar.set_label('class activation (largest = 1)')
    bar.solids.set_alpha(1)
    return figure
