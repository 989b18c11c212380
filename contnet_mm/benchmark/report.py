"""The results as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from contnet_mm.benchmark.plan import MULTISCALE
from contnet_mm.benchmark.statistics import (
    Spread,
    best_cell,
    is_timed,
    plain_of,
    ratio,
    spread,
)

NOTHING = '-'
FAILED = '*failed*'
NOT_RUN = '*not run*'


def render_report(run: Mapping, reference: str) -> str:
    """Write all tables of a run.

    Args:
        run: What benchmark.json holds.
        reference: The network whose times the others are divided by.

    Returns:
        A Markdown page.
    """
    parts = ['# Benchmark', _explain(reference), '## Run', _facts(run)]
    for table in run['tables']:
        render = _render_multiscale if table['size'] == MULTISCALE else _render_table
        parts += [f'### {table["size"]}, {table["pass"]}', *render(table, reference)]
    return '\n\n'.join(parts) + '\n'


def _explain(reference: str) -> str:
    return (
        'A backbone gives four maps at strides 4 to 32; random weights, no classifier, nothing '
        'frozen. Sizes are images x height x width in pixels. Times are medians over the rounds, '
        'with the 10th and the 90th percentile in brackets. Ratios are taken in each round: '
        f'`/ {reference}` to the fastest mode of {reference} with the same dtype, `/ plain` to '
        'the plain reading of the same arch in the same mode and dtype; below 1 is faster. '
        'Memory is the peak beyond weights and images, 1 MB = 10^6 bytes, with gradients in '
        'training. The setting is the fastest of those tried.'
    )


def _facts(run: Mapping) -> str:
    facts = {'date': run['date'], 'command': f'`{run["command"]}`', 'rounds': run['rounds']}
    facts |= {**run['hardware'], **run['software']}
    return '\n'.join(_rows(['what', 'value'], [[key, str(v)] for key, v in facts.items()]))


def _render_table(table: Mapping, reference: str) -> list[str]:
    cells = table['cells']
    head = ['network', 'mode', 'dtype', 'setting', 'ms', f'/ {reference}', '/ plain']
    head += ['peak MB', 'compile s']
    rows = [_row(cell, cells, reference) for cell in cells]
    parts = ['\n'.join(_rows(head, rows))]
    best = best_lines(cells, reference)
    if best:
        parts.append('Best of each network over modes and dtypes:\n\n' + '\n'.join(best))
    notes = failures(cells)
    if notes:
        parts.append('Failed:\n\n' + '\n'.join(notes))
    return parts


def _row(cell: Mapping, cells: Sequence[Mapping], reference: str) -> list[str]:
    row = [cell['network'], cell['mode'], cell['dtype'], cell['setting'] or NOTHING]
    if not is_timed(cell):
        status = NOT_RUN if cell['error'] is None else FAILED
        return [*row, status, NOTHING, NOTHING, NOTHING, NOTHING]
    plain = plain_of(cell['network'])
    divisors = [
        best_cell(cells, reference, dtype=cell['dtype']),
        best_cell(cells, plain, dtype=cell['dtype'], mode=cell['mode']) if plain else None,
    ]
    row.append(_show(spread([1000 * s for s in cell['seconds']])))
    row += [_show_ratio(cell, divisor) for divisor in divisors]
    memory = f'{cell["memory_mb"]:.0f}' if cell['memory_mb'] is not None else NOTHING
    if cell['memory_error'] is not None:
        memory = FAILED
    compiled = NOTHING if cell['compile_s'] is None else f'{cell["compile_s"]:.0f}'
    return [*row, memory, compiled]


def best_lines(cells: Sequence[Mapping], reference: str) -> list[str]:
    """Compare the best that each network can do, over modes and dtypes.

    Args:
        cells: All of one table.
        reference: The network to compare with.

    Returns:
        A Markdown list item for each network that was timed.
    """
    lines = []
    for network in dict.fromkeys(cell['network'] for cell in cells):
        best = best_cell(cells, network)
        if best is None:
            continue
        time = _show(spread([1000 * s for s in best['seconds']]))
        text = f'- {network}: {best["mode"]} {best["dtype"]}, {time} ms'
        plain = plain_of(network)
        for name in (reference, plain):
            other = best_cell(cells, name) if name else None
            if other is not None and name != network:
                text += f"; {_show_ratio(best, other)} of {name}'s best"
        lines.append(text)
    return lines


def failures(cells: Sequence[Mapping]) -> list[str]:
    """List what failed and why, settings that were merely tried among it, as Markdown items."""
    lines = []
    for cell in cells:
        name = f'{cell["network"]} {cell["mode"]} {cell["dtype"]}'
        if cell['error'] is not None:
            lines.append(f'- {name}: {cell["error"]}')
            continue
        lines += [
            f'- {name}, only the setting {trial["setting"]}: {trial["error"]}'
            for trial in cell['trials']
            if trial['error'] is not None
        ]
        if cell['memory_error'] is not None:
            lines.append(f'- {name}, its memory: {cell["memory_error"]}')
    return lines


def _render_multiscale(table: Mapping, reference: str) -> list[str]:
    cells = table['cells']
    head = ['network', 'mode', 'dtype', 'setting', 'first pass s', 'second pass s']
    head += [f'second / {reference}', 'graphs: first shape', 'other shapes', 'second pass']
    rows = []
    for cell in cells:
        row = [cell['network'], cell['mode'], cell['dtype'], cell['setting'] or NOTHING]
        passes = cell.get('pass_seconds', [])
        if cell['error'] is not None or len(passes) < 2:
            status = NOT_RUN if cell['error'] is None else FAILED
            rows.append([*row, status, *[NOTHING] * 5])
            continue
        others = [
            other['pass_seconds'][1]
            for other in cells
            if other['network'] == reference
            and other['dtype'] == cell['dtype']
            and other['error'] is None
            and len(other.get('pass_seconds', [])) == 2
        ]
        row += [_digits(value) for value in passes]
        row.append(_digits(passes[1] / min(others)) if others else NOTHING)
        row += [str(number) for number in cell['graphs']]
        rows.append(row)
    number = len(table['shapes'])
    text = (
        f'{number} different shapes of 2 images as multi-scale training brings them, twice: total '
        'seconds, and how many graphs were compiled; '
        '*dynamic* is torch.compile for any size, of ConTNet its own option.'
    )
    parts = [text, '\n'.join(_rows(head, rows))]
    notes = failures(cells)
    if notes:
        parts.append('Failed:\n\n' + '\n'.join(notes))
    return parts


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ['---'] * len(head), *rows]
    return ['| ' + ' | '.join(_escape(word) for word in line) + ' |' for line in lines]


def _escape(text: str) -> str:
    return text.replace('|', '\\|')


def _show_ratio(cell: Mapping, other: Mapping | None) -> str:
    if other is None:
        return NOTHING
    # A run that was interrupted, or in which a cell failed, has rounds that only some were in.
    number = min(len(cell['seconds']), len(other['seconds']))
    return _show(ratio(cell['seconds'][:number], other['seconds'][:number]))


def _show(value: Spread) -> str:
    return f'{_digits(value.median)} [{_digits(value.low)}-{_digits(value.high)}]'


def _digits(value: float) -> str:
    """Show three digits, and no fewer before the point than there are."""
    return f'{value:.3g}' if value < 1000 else f'{value:.0f}'
