"""Medians and ratios of timings, round by round; nothing in here runs a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """The middle of some values and how far they lie apart.

    Args:
        median: Of the values.
        low: Their 10th percentile.
        high: Their 90th percentile.
    """

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Sum values up.

    Raises:
        ValueError: If there are none.
    """
    if not len(values):
        raise ValueError('values must not be empty')
    low, median, high = np.percentile(values, [10, 50, 90])
    return Spread(float(median), float(low), float(high))


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> Spread:
    """Compare two cells that were timed in the same rounds.

    The ratio is taken in each round, since what slows a machine down for a while slows both.

    Args:
        seconds: Of the cell, a value for each round.
        reference: Of the cell to compare with.

    Raises:
        ValueError: If the numbers of rounds differ.
    """
    if len(seconds) != len(reference):
        raise ValueError(
            f'both cells must have been in the same rounds, got {len(seconds)} and {len(reference)}'
        )
    return spread([a / b for a, b in zip(seconds, reference, strict=True)])


def choose_trial(trials: Sequence[Mapping]) -> int | None:
    """Tell which setting was the fastest: the index of its trial; None if all failed.

    Args:
        trials: Each with ``ms``, which is None where it failed.
    """
    timed = [i for i, trial in enumerate(trials) if trial['ms'] is not None]
    return min(timed, key=lambda i: trials[i]['ms'], default=None)


def iterations_for(seconds: float, wanted: float) -> int:
    """Tell how many iterations take at least some time.

    Args:
        seconds: One iteration takes.
        wanted: Seconds that all take together.
    """
    return max(1, math.ceil(wanted / max(seconds, 1e-6)))


def is_timed(cell: Mapping) -> bool:
    """Tell whether a cell of the results has timings that count."""
    return bool(cell['seconds']) and cell['error'] is None


def best_cell(
    cells: Sequence[Mapping], network: str, dtype: str | None = None, mode: str | None = None
) -> Mapping | None:
    """Find the fastest way that a network was run in; None if it was not.

    Args:
        cells: All of one table.
        network: Its name.
        dtype: Only this one.
        mode: Only this one.
    """
    candidates = [
        cell
        for cell in cells
        if cell['network'] == network
        and (dtype is None or cell['dtype'] == dtype)
        and (mode is None or cell['mode'] == mode)
        and is_timed(cell)
    ]
    return min(candidates, key=lambda cell: spread(cell['seconds']).median, default=None)


def plain_of(network: str) -> str | None:
    """Name the plain reading of a ConTNet's arch; None for any other network."""
    family, _, arch = network.partition('-')
    return f'plain-{arch.partition("-")[0]}' if family == 'contnet' else None
