"""Expected against got: as data, as a page, as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import groupby
from pathlib import Path

from contnet_mm.apis.mmcv_ops import find_ops
from contnet_mm.benchmark.machine import describe_machine
from contnet_mm.reproduce.rows import METRICS, find_zoo
from contnet_mm.reproduce.run import Trial
from contnet_mm.utils.files import write_figure
from contnet_mm.utils.markdown import make_table

NOT_RUN, FAILED, BELOW = 'not run', 'failed', 'below'
WITHIN, ABOVE, MEASURED = 'within', 'above', 'measured'
BAD = (FAILED, BELOW)
COLUMNS = ('table', 'config', 'metric', 'published', 'zoo', 'got', 'difference', 'verdict')


def make_report(trials: Sequence[Trial], skipped: Sequence[str], outcome: Mapping) -> dict:
    """Gather what trials have come to.

    Args:
        trials: As ``make_trials`` returns them, those of a row next to each other.
        skipped: Stages that were left out.
        outcome: What ``run_trials`` returned.

    Returns:
        Plain values: ``machine``, ``skipped``, ``baselines`` and ``rows``.
    """
    machine = describe_machine('cuda' if trials[0].launch.cluster.gpus else 'cpu')
    rows = [
        _report_row([*group], outcome['errors'])
        for _, group in groupby(trials, key=lambda trial: (trial.row.table, trial.row.name))
    ]
    return dict(
        date=str(date.today()),
        machine={**machine, 'operations of mmcv': find_ops()},
        skipped=[*skipped],
        baselines=dict(outcome['baselines']),
        rows=rows,
    )


def _report_row(trials: Sequence[Trial], errors: Mapping[str, str]) -> dict:
    row, states = trials[0].row, [trial.folder.read() for trial in trials]
    tested = [state['test']['metrics'] for state in states if 'test' in state]
    got = {}
    for name in METRICS:
        values = [metrics[name] for metrics in tested if name in metrics]
        if values:
            spread = round(statistics.stdev(values), 3) if len(values) > 1 else None
            got[name] = dict(mean=round(statistics.fmean(values), 3), spread=spread, values=values)
    failed = any(trial.folder.path.name in errors for trial in trials)
    is_complete = len(tested) == len(trials)
    launch = trials[0].launch
    return dict(
        table=row.table,
        name=row.name,
        config=row.config,
        published=dict(row.published),
        zoo=dict(find_zoo(row.zoo).metrics) if row.zoo else {},
        expected={name: [*pair] for name, pair in row.expected().items()},
        got=got,
        verdict=FAILED if failed else _judge(row.expected(), got) if is_complete else NOT_RUN,
        gpus=launch.cluster.gpus,
        batch=launch.batch,
        lr=launch.lr,
        options=dict(trials[0].options),
        fingerprint=trials[0].fingerprint,
        trials=[
            dict(
                seed=trial.seed,
                folder=trial.folder.path.name,
                error=errors.get(trial.folder.path.name),
                **state,
            )
            for trial, state in zip(trials, states, strict=True)
        ],
    )


def _judge(expected: Mapping[str, tuple[float, float]], got: Mapping[str, Mapping]) -> str:
    """Compare means with what is expected; the worst metric decides.

    An expected metric that the evaluators did not measure is a failure.
    """
    if not expected:
        return MEASURED
    if not set(expected) <= set(got):
        return FAILED
    differences = [
        (got[name]['mean'] - value, tolerance) for name, (value, tolerance) in expected.items()
    ]
    if any(difference < -tolerance for difference, tolerance in differences):
        return BELOW
    if any(difference > tolerance for difference, tolerance in differences):
        return ABOVE
    return WITHIN


def is_bad(report: Mapping) -> bool:
    """Tell whether a row has failed or is below what is expected."""
    return any(row['verdict'] in BAD for row in report['rows'])


def render_report(report: Mapping) -> str:
    """Return a report as a page in Markdown."""
    lines = []
    for row in report['rows']:
        names = [name for name in METRICS if name in row['got']]
        for name in names or [*row['expected']][:1] or ['']:
            lines.append(_render_line(row, name))
    text = f'# Expected and got, {report["date"]}\n\n' + make_table(COLUMNS, lines)
    if report['skipped']:
        text += f'\nLeft out: {", ".join(report["skipped"])}.\n'
    errors = [
        f'- {row["name"]}, seed {trial["seed"]}: {trial["error"].splitlines()[0]}\n'
        for row in report['rows']
        for trial in row['trials']
        if trial['error']
    ]
    if errors:
        text += '\nFailed:\n\n' + ''.join(errors)
    return text + '\n' + ''.join(f'- {name}: {x}\n' for name, x in report['machine'].items())


def _render_line(row: Mapping, name: str) -> list[str]:
    expected = row['expected'].get(name)
    got, difference = row['got'].get(name), ''
    if expected and got:
        difference = f'{got["mean"] - expected[0]:+.2f} (tolerance {expected[1]:g})'
    return [
        row['table'],
        row['name'],
        name,
        _show(row['published'].get(name)),
        _show(row['zoo'].get(name)),
        show_value(name, got) if got else '',
        difference,
        row['verdict'],
    ]


def show_value(name: str, got: Mapping) -> str:
    """Return the mean of a metric, with spread and number of seeds where there are several."""
    digits = METRICS[name][2]
    text = f'{got["mean"]:.{digits}f}'
    if got['spread'] is None:
        return text
    return f'{text} ± {got["spread"]:.{digits}f} ({len(got["values"])} seeds)'


def _show(value: float | None) -> str:
    return '' if value is None else f'{value:g}'


def draw_report(report: Mapping, path: Path) -> None:
    """Draw expected and got values, a panel per table and metric, into a PNG file."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, str], list[Mapping]] = {}
    for row in report['rows']:
        for name in row['expected'] or row['got']:
            panels.setdefault((row['table'], name), []).append(row)
    if not panels:
        return
    heights = [len(rows) + 2 for rows in panels.values()]
    figure, axes = plt.subplots(
        len(panels),
        figsize=(9, 0.5 * sum(heights)),
        gridspec_kw=dict(height_ratios=heights),
        layout='constrained',
        squeeze=False,
    )
    for axis, ((table, name), rows) in zip(axes[:, 0], panels.items(), strict=True):
        for y, row in enumerate(rows):
            expected, got = row['expected'].get(name), row['got'].get(name)
            if expected:
                axis.errorbar(expected[0], y, xerr=expected[1], color='tab:gray', capsize=6)
            if got:
                axis.plot(got['values'], [y] * len(got['values']), 'o', color='tab:blue', alpha=0.5)
        axis.set_yticks(range(len(rows)), [row['name'] for row in rows])
        axis.set(title=f'{table}: {name}', ylim=(len(rows) - 0.5, -0.5))
        axis.grid(axis='x', alpha=0.3)
    figure.supxlabel('gray: expected, with tolerance; blue: got, a point for each seed')
    write_figure(path, figure)
    plt.close(figure)
