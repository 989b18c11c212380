"""The file of results: writing, reading, and joining those of one machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from contnet_mm.utils.files import write_file

FORMAT = 1


def write_run(path: Path, run: dict) -> None:
    """Write the results of a run, whole or not at all."""
    text = json.dumps({'format': FORMAT, **run}, indent=1)
    write_file(path, f'{text}\n')


def read_runs(paths: Sequence[Path]) -> list[dict]:
    """Read the results of several runs of one machine.

    Args:
        paths: Files that :func:`write_run` wrote.

    Raises:
        ValueError: If a file cannot be read or holds something else, or if the runs were on
            different hardware, whose times must not stand in one table.
    """
    runs = [_read(path) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        for name in sorted({*run['hardware'], *runs[0]['hardware']}):
            here, there = run['hardware'].get(name), runs[0]['hardware'].get(name)
            if here != there:
                raise ValueError(
                    f'{path} is of other hardware than {paths[0]}: {name} {here!r}, not '
                    f'{there!r}; give files of one machine'
                )
    return runs


def _read(path: Path) -> dict:
    try:
        run = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be read as results of a benchmark: {error}') from error
    if not isinstance(run, dict) or run.get('format') != FORMAT or 'tables' not in run:
        raise ValueError(f'{path} holds no results of a benchmark in format {FORMAT}')
    return run
