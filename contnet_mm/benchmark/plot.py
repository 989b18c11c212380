"""The results as a picture: bars of the ratios."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from contnet_mm.benchmark.plan import MULTISCALE
from contnet_mm.benchmark.statistics import best_cell, is_timed, ratio

COLOURS = {'eager': '#4477aa', 'compiled': '#ee7733'}
BAR_INCHES = 0.28
PANEL_INCHES = 5.5


def draw_ratios(runs: Sequence[Mapping], reference: str) -> bytes:
    """Draw how long each network takes, as a multiple of the reference.

    One panel for each table and dtype, a bar for each network and mode: the median over rounds of
    the ratio to the fastest mode of the reference with that dtype, and a line from the 10th to the
    90th percentile.

    Args:
        runs: As :func:`~contnet_mm.benchmark.results.read_runs` gives them.
        reference: The network to compare with.

    Returns:
        A PNG file.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    tables = [
        table
        for run in runs
        for table in run['tables']
        if table['size'] != MULTISCALE and table['cells']
    ]
    dtypes = list(dict.fromkeys(cell['dtype'] for table in tables for cell in table['cells']))
    if not tables:
        figure, axes = plt.subplots(figsize=(PANEL_INCHES, 2))
        axes.text(0.5, 0.5, 'nothing timed in rounds', ha='center', va='center')
        axes.axis('off')
        return _png(figure, plt)
    bars = [max(_count(table, dtype) for dtype in dtypes) for table in tables]
    figure, grid = plt.subplots(
        len(tables),
        len(dtypes),
        squeeze=False,
        figsize=(PANEL_INCHES * len(dtypes), sum(BAR_INCHES * n + 1.1 for n in bars)),
        height_ratios=[n + 2 for n in bars],
        layout='constrained',
    )
    for row, table in zip(grid, tables, strict=True):
        for axes, dtype in zip(row, dtypes, strict=True):
            _draw_panel(axes, table, dtype, reference)
    return _png(figure, plt)


def _count(table: Mapping, dtype: str) -> int:
    return max(1, sum(cell['dtype'] == dtype for cell in table['cells']))


def _draw_panel(axes, table: Mapping, dtype: str, reference: str) -> None:
    cells = [cell for cell in table['cells'] if cell['dtype'] == dtype]
    if not cells:  # as of weights in bfloat16 in training
        axes.axis('off')
        return
    other = best_cell(table['cells'], reference, dtype=dtype)
    axes.set_title(f'{table["size"]}, {table["pass"]}, {dtype}', fontsize=10)
    axes.set_xlabel(f"time / time of {reference}'s fastest mode (below 1: faster)", fontsize=8)
    axes.set_yticks(range(len(cells)), [f'{c["network"]} {c["mode"]}' for c in cells], fontsize=8)
    axes.set_ylim(len(cells) - 0.4, -0.6)  # the first on top
    axes.tick_params(axis='x', labelsize=8)
    axes.grid(axis='x', alpha=0.3)
    highest = 1.0
    for place, cell in enumerate(cells):
        if other is None or not is_timed(cell):
            text = 'failed' if cell['error'] is not None else f'no ratio to {reference}'
            axes.text(0.02, place, text, va='center', fontsize=8, style='italic')
            continue
        number = min(len(cell['seconds']), len(other['seconds']))
        value = ratio(cell['seconds'][:number], other['seconds'][:number])
        spread = [[value.median - value.low], [value.high - value.median]]
        colour = COLOURS.get(cell['mode'], '#999999')
        axes.barh(place, value.median, 0.75, color=colour, xerr=spread, ecolor='#222222')
        axes.text(value.high, place, f'  {value.median:.2f}', va='center', fontsize=8)
        highest = max(highest, value.high)
    axes.axvline(1, color='#222222', linestyle=':', linewidth=1)
    axes.set_xlim(0, 1.15 * highest)  # room for the numbers


def _png(figure, plt) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format='png', dpi=110)
    plt.close(figure)
    return picture.getvalue()
