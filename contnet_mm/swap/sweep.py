"""The swap of the backbone of every config that the libraries ship, and what became of each."""

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
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.config import Config

from contnet_mm.apis.config import read_config
from contnet_mm.swap.edit import SwapError
from contnet_mm.swap.plan import plan_swap
from contnet_mm.swap.sandbox import MissingDependencyError, OddConfigError
from contnet_mm.swap.task import TASKS, kind_of, type_name
from contnet_mm.swap.text.write import read_back, relative_base, render_child
from contnet_mm.swap.trial.verify import NO_PREDICTION, OriginalFailsTooError, verify_swap
from contnet_mm.utils.files import write_file
from contnet_mm.utils.markdown import make_table

WORKS, TRAINS, REFUSED, FAILED, OTHER = 'works', 'trains', 'refused', 'failed', 'other'
STATUSES = (WORKS, TRAINS, REFUSED, FAILED)
REST, UNREADABLE = 'any other', 'not readable'
# The rows of the table; every other backbone is in one row more.
FAMILIES = ('ResNet', 'ResNeXt', 'ResNeSt', 'Res2Net', 'RegNet', 'HRNet', 'Swin', 'PVT', 'ConvNeXt')
FAMILIES += ('MobileNet', 'VGG')
# Classes whose name does not hold that of their family, or holds that of another.
KNOWN = {'PyramidVisionTransformer': 'PVT', 'PyramidVisionTransformerV2': 'PVT', 'RepVGG': REST}


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
        """The row of the table that counts it."""
        if self.kind == UNREADABLE:
            return UNREADABLE
        name = KNOWN.get(self.backbone, self.backbone)
        return next((family for family in FAMILIES if family in name), REST)


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
        groups = {name: [Outcome(name, kind='')] for name in names}
        for step in (_look_at, _plan, _verify):
            firsts = [group[0] for group in groups.values()]
            results = pool.imap(step, [(names[first.name], first, seconds) for first in firsts])
            alike: dict[str, list[Outcome]] = defaultdict(list)
            for group, (found, key) in zip(groups.values(), results, strict=True):
                for each in group:
                    twin = each.twin or (group[0].name if each is not group[0] else '')
                    outcome = replace(each, twin=twin, **found)
                    if key is None:
                        yield outcome
                    else:
                        alike[key].append(outcome)
            groups = alike


# Each step gets the file of a config, what is known of it and a limit of time, and returns what it
# found out and, if that does not settle the outcome, a key that equal cases share.
Task = tuple[Path, Outcome, int]
Found = tuple[dict[str, str], str | None]


def _look_at(task: Task) -> Found:
    path, outcome, _ = task
    try:
        config = Config.fromfile(path)
    except Exception as error:  # configs are code
        said = re.sub(r'\S*/site-packages/', '', str(error))[:200]  # folders differ by machine
        reason = f'it does not parse: {type(error).__name__}: {said}'
        return dict(kind=UNREADABLE, status=REFUSED, reason=reason), None
    kind = kind_of(config) if config.get('default_scope') else 'no training'
    if kind not in TASKS:
        return dict(kind=kind), None
    holder = config.model.get('detector') or config.model  # of semi-supervised training
    return dict(kind=kind, backbone=type_name(holder.get('backbone'))), _key(config, outcome)


def _plan(task: Task) -> Found:
    path, outcome, seconds = task
    try:
        with _limit(seconds), TemporaryDirectory() as folder:
            config, out = read_config(path), Path(folder, 'config.py')
            swap = plan_swap(config)
            read_back(render_child(config, swap, relative_base(str(path), out)), out, swap.config)
    except OddConfigError as error:  # a fault of ours, to be listed as such
        return dict(status=FAILED, reason=f'swapping: {error}'), None
    except SwapError as error:
        return dict(status=REFUSED, reason=str(error)), None
    except (Exception, _TimeoutError) as error:
        return dict(status=FAILED, reason=f'swapping: {type(error).__name__}: {error}'), None
    return {}, _key(swap.config, outcome)


def _verify(task: Task) -> Found:
    path, _, seconds = task
    try:
        with _limit(seconds):
            config = read_config(path)
            reason = verify_swap(config, plan_swap(config).config)
    except (MissingDependencyError, OriginalFailsTooError) as error:
        return dict(status=REFUSED, reason=str(error)), None
    except (Exception, _TimeoutError) as error:  # a fault of ours, to be listed as such
        return dict(status=FAILED, reason=f'{type(error).__name__}: {error}'), None
    return dict(status=TRAINS if NO_PREDICTION in reason else WORKS, reason=reason), None


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
    outcomes = list(outcomes)
    counts = Counter((o.library, o.family, o.status) for o in outcomes)
    others = Counter((o.library, o.kind) for o in outcomes if o.status == OTHER)
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.status not in (WORKS, OTHER):
            reasons[outcome.status, outcome.reason].append(outcome.name)
    order, rows = (*FAMILIES, REST, UNREADABLE), []
    for library, family in product(sorted({o.library for o in outcomes}), order):
        numbers = [counts[library, family, status] for status in STATUSES]
        if any(numbers):
            rows.append((library, family, sum(numbers), *numbers))
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
