"""Write results as Markdown tables of medians, percentiles and ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from contnet_mm.benchmark.run import Result
from contnet_mm.utils.markdown import make_table

NOTHING = '-'
COLUMNS = ('network', 'mode', 'dtype', 'setting', 'ms', '/ {}', 'peak MB', 'compile s')


def render_report(facts: Mapping, results: Sequence[Result], reference: str) -> str:
    """Write all tables of a run as a Markdown page.

    Args:
        facts: What else the report says, by name.
        results: Those of one size and pass are neighbours.
        reference: The network whose times the others are divided by.
    """
    parts = [
        '# Benchmark',
        'A backbone gives four maps at strides 4 to 32; random weights, no classifier, nothing '
        'frozen. Sizes are images x height x width in pixels. Times are medians over the rounds, '
        'with the 10th and the 90th percentile in brackets. Ratios are taken in each round: '
        f'`/ {reference}` to the fastest mode of {reference} with the same dtype; below 1 is '
        'faster. Memory is the peak beyond weights and images, 1 MB = 10^6 bytes, with gradients '
        'in training. The setting is the fastest of those tried.',
        '## Run',
        make_table(('what', 'value'), facts.items()),
    ]
    for (size, name), group in groupby(results, key=lambda r: (r.case.size, r.case.pass_name)):
        parts += [f'### {size}, {name}', *_render_table([*group], reference)]
    return '\n\n'.join(part.strip() for part in parts) + '\n'


def _render_table(results: Sequence[Result], reference: str) -> list[str]:
    """Write the table of one size and pass, and what failed."""
    rows = []
    for result in results:
        case = result.case
        values = ['*not run*' if result.error is None else '*failed*']
        if result.is_timed:
            values = _times(result, best_result(results, reference, case.dtype))
        row = [case.network, case.mode, case.dtype, result.setting or NOTHING, *values]
        rows.append(row + [NOTHING] * (len(COLUMNS) - len(row)))
    table = make_table([name.format(reference) for name in COLUMNS], rows)
    return [table, *_failures(results)]


def _times(result: Result, other: Result | None) -> list[str]:
    memory = NOTHING if result.memory_mb is None else f'{result.memory_mb:.0f}'
    return [
        show_percentiles([1000 * seconds for seconds in result.seconds]),
        _show_ratio(result, other),
        memory if result.memory_error is None else '*failed*',
        NOTHING if result.compile_s is None else f'{result.compile_s:.0f}',
    ]


def _passes(result: Result, other: Result | None) -> list[str]:
    ratio = NOTHING if other is None else _digits(result.pass_seconds[1] / other.pass_seconds[1])
    return [*map(_digits, result.pass_seconds), ratio, *map(str, result.graphs)]


def _failures(results: Sequence[Result]) -> list[str]:
    """List what failed and why, including settings that were merely tried."""
    lines = []
    for result in results:
        case = result.case
        name = f'- {case.network} {case.mode} {case.dtype}'
        if result.error is not None:
            lines.append(f'{name}: {result.error}\n')
            continue
        lines += [
            f'{name}, only the setting {trial["setting"]}: {trial["error"]}\n'
            for trial in result.trials
            if trial['error'] is not None
        ]
        if result.memory_error is not None:
            lines.append(f'{name}, its memory: {result.memory_error}\n')
    return ['Failed:', ''.join(lines)] if lines else []


def best_result(results: Sequence[Result], network: str, dtype: str) -> Result | None:
    """Return the fastest result of a network with a dtype, or None."""
    wanted = network, dtype
    timed = (r for r in results if r.is_timed and (r.case.network, r.case.dtype) == wanted)
    return min(timed, key=lambda result: np.median(result.seconds), default=None)


def show_percentiles(values: Sequence[float]) -> str:
    """Summarise values by the median and, in brackets, the 10th and the 90th percentile."""
    low, median, high = np.percentile(values, [10, 50, 90])
    return f'{_digits(median)} [{_digits(low)}-{_digits(high)}]'


def _show_ratio(result: Result, other: Result | None) -> str:
    """Compare timings round by round, since what slows a machine down for a while slows both."""
    if other is None:
        return NOTHING
    return show_percentiles([a / b for a, b in zip(result.seconds, other.seconds, strict=True)])


def _digits(value: float) -> str:
    """Show three digits, and no fewer before the point than there are."""
    return f'{value:.3g}' if value < 1000 else f'{value:.0f}'
