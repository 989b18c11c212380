"""Reads what MMEngine logged of a training, over all the runs that it took."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

# Values by name, each a list of (step, value) in order of the steps.
Curves = dict[str, list[tuple[int, float]]]


@dataclass
class TrainingLog:
    """Curves of one training.

    Args:
        train: Values logged during training, such as 'loss', by iteration.
        val: Values logged after validation, such as 'coco/bbox_mAP', by epoch or iteration.
        by_epoch: Whether the steps of ``val`` are epochs.
    """

    train: Curves = field(default_factory=dict)
    val: Curves = field(default_factory=dict)
    by_epoch: bool = False


def read_training_log(work_dir: str | Path) -> TrainingLog:
    """Join the logs of all runs in a work directory.

    A run that resumed an earlier one replaces all that the earlier one logged from the
    resumed step on, even where the later run has not come that far yet.

    Args:
        work_dir: Work directory of MMEngine's runner, with a folder for each run.

    Raises:
        ValueError: If the directory or every training log in it is missing.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise ValueError(f'{work_dir} is no directory: pass the work_dir of a training')
    # The names of the runs are their starting times, so that sorting puts them in order.
    paths = sorted(work_dir.glob('*/vis_data/scalars.json'))
    log = TrainingLog()
    for path in paths:
        lines = _read_lines(path)
        train = [line for line in lines if 'iter' in line]  # which only training lines carry
        val = [line for line in lines if 'iter' not in line]
        if train:  # otherwise a test, or a run that ended before its first log line
            log.by_epoch = 'epoch' in train[0]
            _replace_from(log.train, train[0]['iter'], train, 'iter')
        # A resumed run may begin with the validation that the earlier one did not finish.
        starts = [line['epoch' if log.by_epoch else 'iter'] for line in train[:1]]
        starts += [line['step'] for line in val[:1] if line['step'] and log.train]
        if starts:
            _replace_from(log.val, min(starts), val, 'step')
    if not log.train:
        raise ValueError(
            f'{work_dir} holds no log of a training: of {len(paths)} files '
            '*/vis_data/scalars.json none has a line with "iter"'
        )
    return log


def _read_lines(path: Path) -> list[dict]:
    texts = path.read_text().splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            if number < len(texts):  # a killed run may leave half of its last line
                raise ValueError(f'{path}, line {number} is no JSON: {text[:80]!r}') from error
    return lines


def _replace_from(curves: Curves, start: int, lines: list[dict], step_key: str) -> None:
    """Drop what the curves hold from a step on and append the lines instead."""
    for name, points in curves.items():
        curves[name] = [point for point in points if point[0] < start]
    for line in lines:
        for name, value in line.items():
            if name not in ('step', 'iter', 'epoch') and isinstance(value, (int, float)):
                curves.setdefault(name, []).append((line[step_key], value))
