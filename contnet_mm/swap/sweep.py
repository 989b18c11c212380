"""Swaps the backbone of every config that the libraries ship, and tells what became of each."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.config import Config

from contnet_mm.apis.config import read_config
from contnet_mm.swap.changes import SwapError
from contnet_mm.swap.plan import plan_swap
from contnet_mm.swap.task import TASKS, kind_of, type_name
from contnet_mm.swap.text.write import read_back, relative_base, render_child
from contnet_mm.swap.trial.verify import (
    NO_PREDICTION,
    AlikeError,
    MissingDependencyError,
    verify_swap,
)
from contnet_mm.utils.files import write_file
from contnet_mm.utils.markdown import make_table

WORKS, TRAINS, REFUSED, FAILED, OTHER = 'works', 'trains', 'refused', 'failed', 'other'
STATUSES = (WORKS, TRAINS, REFUSED, FAILED)
REST, UNREADABLE = 'any other', 'not readable'
# The rows of the table; every other backbone is in one row more.
FAMILIES = ('ResNet', 'ResNeXt', 'ResNeSt', 'Res2Net', 'RegNet', 'HRNet', 'Swin', 'PVT', 'ConvNeXt')
FAMILIES += ('MobileNet', 'VGG')
# Names of classes that do not hold the name of their family.
ALIASES = {'PyramidVisionTransformer': 'PVT', 'PyramidVisionTransformerV2': 'PVT'}
NO_KIN = ('RepVGG',)  # hold the name of a family that they do not belong to


class _TimeoutError(BaseException):
    """Not an Exception, which whoever reports a failing module would take for the module's."""


@dataclass(frozen=True)
class Outcome:
    """What became of one config.

    Args:
        name: As in ``_base_``, such as ``mmdet::fcos/<file>.py``.
        kind: What it is for; see :func:`contnet_mm.swap.task.kind_of`.
        backbone: The class of its backbone.
        status: ``'works'``; ``'trains'``: predicts with no backbone here; ``'refused'``,
            ``'failed'``; or ``'other'``: none of the tasks.
        reason: Why not, or what ran.
        twin: The config with an equal model that was swapped in its place, if any.
    """

    name: str
    kind: str
    backbone: str = ''
    status: str = OTHER
    reason: str = ''
    twin: str = ''

    @property
    def library(self) -> str:
        """The library that ships the config."""
        return self.name.partition('::')[0]

    @property
    def family(self) -> str:
        """The family of its backbone: one of ``FAMILIES``, or its class."""
        name = ALIASES.get(self.backbone, self.backbone)
        if name in NO_KIN:
            return name
        # The longer names first: one may hold another.
        return next((f for f in sorted(FAMILIES, key=len, reverse=True) if f in name), name)


def find_configs(library: str) -> dict[str, Path]:
    """Return the configs that an installed library ships, by the name that ``_base_`` takes.

    Raises:
        ValueError: If the library is not installed, or ships none.
    """
    spec = find_spec(library)
    folder = Path(spec.submodule_search_locations[0], '.mim', 'configs') if spec else Path(library)
    paths = sorted(folder.rglob('*.py')) if spec else []
    if not paths:
        raise ValueError(f'{library} is not installed, or was installed without its configs')
    return {
        f'{library}::{path.relative_to(folder).as_posix()}': path
        for path in paths
        if '_base_' not in path.parts
    }


def sweep(names: dict[str, Path], jobs: int, seconds: int) -> Iterator[Outcome]:
    """Swap and verify configs; of those with equal models one in the place of all.

    Args:
        names: Configs by their names.
        jobs: How many processes to use.
        seconds: After which a config has failed.

    Yields:
        One outcome for each config, as they come.
    """
    context = multiprocessing.get_context('spawn')
    # Processes end after a while, for the memory that they keep.
    with context.Pool(jobs, _be_quiet, maxtasksperchild=100) as pool:
        groups: dict[str, list[Outcome]] = defaultdict(list)
        for outcome, key in pool.imap(_look_at, names.items()):
            if key is None:
                yield outcome
            else:
                groups[key].append(outcome)
        swapped: dict[str, list[Outcome]] = defaultdict(list)
        firsts = [(names[group[0].name], group[0], seconds) for group in groups.values()]
        plans = pool.imap(_plan, firsts)
        for group, (outcome, key) in zip(groups.values(), plans, strict=True):
            twins = [replace(outcome, **_own(each, group[0])) for each in group]
            if key is None:
                yield from twins
            else:
                swapped[key].extend(twins)
        firsts = [(names[group[0].name], group[0], seconds) for group in swapped.values()]
        results = pool.imap(_verify, firsts)
        for group, outcome in zip(swapped.values(), results, strict=True):
            for each in group:
                yield replace(outcome, **_own(each, group[0]))


def _own(each: Outcome, first: Outcome) -> dict[str, str]:
    twin = each.twin or (first.name if each.name != first.name else '')
    return dict(name=each.name, kind=each.kind, backbone=each.backbone, twin=twin)


def _look_at(item: tuple[str, Path]) -> tuple[Outcome, str | None]:
    """Read a config; return what it is and, if it is to be swapped, its model as a key."""
    name, path = item
    try:
        config = Config.fromfile(path)
    except Exception as error:  # configs are code
        said = re.sub(r'\S*/site-packages/', '', str(error))[:200]  # folders differ by machine
        reason = f'it does not parse: {type(error).__name__}: {said}'
        return Outcome(name, UNREADABLE, status=REFUSED, reason=reason), None
    kind = kind_of(config) if config.get('default_scope') else 'no training'
    if kind not in TASKS:
        return Outcome(name, kind), None
    model = config.model
    holder = model.detector if isinstance(model.get('detector'), dict) else model
    outcome = Outcome(name, kind, type_name(holder.get('backbone')))
    return outcome, _key(config, outcome)


def _plan(item: tuple[Path, Outcome, int]) -> tuple[Outcome, str | None]:
    """Swap and write; return the outcome if that is settled, else the swapped model as a key."""
    path, outcome, seconds = item
    try:
        with _limit(seconds), TemporaryDirectory() as folder:
            config, out = read_config(path), Path(folder, 'config.py')
            swap = plan_swap(config)
            read_back(render_child(config, swap, relative_base(str(path), out)), out, swap.config)
    except SwapError as error:
        return replace(outcome, status=REFUSED, reason=str(error)), None
    except (Exception, _TimeoutError) as error:  # a fault of ours, to be listed as such
        reason = f'swapping: {type(error).__name__}: {error}'
        return replace(outcome, status=FAILED, reason=reason), None
    return outcome, _key(swap.config, outcome)


def _verify(item: tuple[Path, Outcome, int]) -> Outcome:
    path, outcome, seconds = item
    try:
        with _limit(seconds):
            config = read_config(path)
            reason = verify_swap(config, plan_swap(config).config)
    except (MissingDependencyError, AlikeError) as error:
        return replace(outcome, status=REFUSED, reason=str(error))
    except (Exception, _TimeoutError) as error:  # a fault of ours, to be listed as such
        return replace(outcome, status=FAILED, reason=f'{type(error).__name__}: {error}')
    return replace(outcome, status=TRAINS if NO_PREDICTION in reason else WORKS, reason=reason)


def _key(config: Config, outcome: Outcome) -> str:
    """Return what decides how a swap goes: the library, its model, weights and optimizer."""
    optimizer = config.get('optim_wrapper') or {}
    parts = [
        outcome.library,
        config.model.to_dict(),
        config.get('data_preprocessor'),
        bool(config.get('load_from')),
        optimizer.get('constructor'),
        optimizer.get('paramwise_cfg'),
    ]
    return json.dumps(parts, sort_keys=True, default=repr)


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TimeoutError(f'it takes more than {seconds} s')

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _be_quiet() -> None:
    torch.set_num_threads(1)  # one process for each core
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 (libraries print when they are imported)


def make_tables(outcomes: Iterable[Outcome]) -> str:
    """Return as Markdown: outcomes by library and family, other tasks, and every reason."""
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    others: Counter = Counter()
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.status == OTHER:
            others[outcome.library, outcome.kind] += 1
            continue
        counts[outcome.library, _row(outcome)][outcome.status] += 1
        if outcome.status != WORKS:
            reasons[outcome.status, outcome.reason].append(outcome.name)
    order = {name: place for place, name in enumerate((*FAMILIES, REST, UNREADABLE))}
    rows = [
        (library, row, counter.total(), *(counter[status] for status in STATUSES))
        for (library, row), counter in sorted(
            counts.items(), key=lambda item: (item[0][0], order[item[0][1]])
        )
    ]
    for title, wanted in (('these families', FAMILIES), ('all', order)):
        chosen = [row for row in rows if row[1] in wanted]
        sums = [sum(row[i] for row in chosen) for i in range(2, 3 + len(STATUSES))]
        rows.append(('all', f'**{title}**', *sums))
    header = ('library', 'old backbone', 'configs', *STATUSES)
    other_rows = [(library, kind, n) for (library, kind), n in sorted(others.items())]
    reason_rows = [
        (status, len(names), reason, f'`{names[0]}`')
        for (status, reason), names in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]
    return '\n'.join(
        [
            make_table(header, rows, numbers=1 + len(STATUSES)),
            make_table(('library', 'not swapped: configs for', 'configs'), other_rows, numbers=1),
            make_table(('outcome', 'configs', 'reason', 'for instance'), reason_rows),
        ]
    )


def _row(outcome: Outcome) -> str:
    if outcome.kind == UNREADABLE:
        return UNREADABLE
    return outcome.family if outcome.family in FAMILIES else REST


def read_outcomes(path: Path) -> list[Outcome]:
    """Read what :func:`write_outcomes` wrote.

    Raises:
        ValueError: If the file does not exist or holds something else.
    """
    try:
        return [Outcome(**fields) for fields in json.loads(path.read_text(encoding='utf-8'))]
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is no JSON file of a sweep: {error}') from error


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write outcomes as JSON, one to a line, in the order of their names."""
    lines = [json.dumps(asdict(o)) for o in sorted(outcomes, key=lambda o: o.name)]
    write_file(path, '[' + ',\n '.join(lines) + ']\n')
