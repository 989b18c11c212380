"""From a folder of data to a config that is proven to train on it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from mmengine.config import Config

from contnet_mm.apis.config import CONFIG_SUFFIXES, read_config
from contnet_mm.datasets.check import DatasetIssue, check_parts, parts_of_config
from contnet_mm.datasets.check.fixes import FixCommands
from contnet_mm.datasets.check.issues import Report
from contnet_mm.swap.edit import Swap
from contnet_mm.swap.sandbox import failing, silence
from contnet_mm.swap.task import library_of
from contnet_mm.swap.text.write import check_out, read_back, relative_base, render_child
from contnet_mm.utils.files import write_file

from .convert import write_parts
from .data import OwnData, Part, choose_parts
from .masks import IGNORED
from .plan import Options, check_task, plan_config
from .read import read_data
from .repair import repair_parts
from .trial import try_config


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        root: Folder of the data.
        base: The config to inherit.
        out: File to write.
        val: Part to validate on, or a share; None: by its name.
        test: Part to test on; None: by its name.
        classes: Names; None: those in the data.
        repair: Whether to leave out what is damaged.
        command: The command that asked, for what is to be fixed by another option.
    """

    root: Path
    base: str
    out: Path
    val: str | None = None
    test: str | None = None
    classes: tuple[str, ...] | None = None
    repair: bool = False
    command: str = ''


@dataclass(frozen=True)
class Made:
    """What was made.

    Args:
        base: The config that is inherited.
        swap: The new config, with a reason for each change.
        data: What was read.
        chosen: The parts by 'train', 'val' and 'test'.
        notes: Issues that ask for nothing.
        folder: Where converted files lie; None if nothing had to be converted.
        what_ran: What was tried, in words.
    """

    base: Config
    swap: Swap
    data: OwnData
    chosen: dict[str, Part]
    notes: list[DatasetIssue]
    folder: Path | None
    what_ran: str


class BadDataError(ValueError):
    """Data that nothing is made of before it is put right."""

    def __init__(self, issues: list[DatasetIssue]) -> None:
        count = sum(not issue.is_note for issue in issues)
        super().__init__(f'{count} issue{"s" if count > 1 else ""} to fix')
        self.issues = issues


def full_name(base: str) -> str:
    """Return the name of a config with its suffix, which may be left out."""
    return base if base.endswith(CONFIG_SUFFIXES) else f'{base}.py'


def default_out(base: str, root: Path) -> Path:
    """Return the name of the new config, in the current folder."""
    return Path(f'{Path(full_name(base).replace("::", "/")).stem}_{root.resolve().name}.py')


def make_config(request: Request, options: Options) -> Made:
    """Read data, check it, convert it, and write a config that trained a step on it.

    Whatever fails leaves no file behind.

    Args:
        request: What is asked for.
        options: What a person chose of the training.

    Raises:
        BadDataError: If the data has to be put right first.
        ValueError: For everything else that does not fit, with the reason.
    """
    out, base_name = request.out, full_name(request.base)
    folder = out.with_name(f'{out.stem}_data')
    check_out(out)
    if folder.exists():
        raise ValueError(f'{folder} exists; move it away, or give another name by -o')
    with silence(), failing(f'reading {base_name}'):
        base = read_config(base_name)
    library = library_of(base)
    data = read_data(library, request.root, request.classes)
    with silence():
        check_task(base, data)
    chosen = choose_parts(data, request.val, request.test)
    if request.repair:
        chosen = _repair(data, chosen)
    # What stays in its own file is checked there.
    unread = [i for p in chosen.values() if p.source is None or not p.samples for i in p.issues]
    unread = [replace(issue, fix='') for issue in unread] if request.repair else unread
    data.report.issues += dict.fromkeys(unread)
    try:
        made = _make(request, options, base, data, chosen, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return made


def _make(
    request: Request,
    options: Options,
    base: Config,
    data: OwnData,
    chosen: dict[str, Part],
    folder: Path,
) -> Made:
    out = request.out
    _refuse_empty(data, chosen)
    settings = write_parts(library_of(base), data, chosen, folder)
    if request.classes and library_of(base) == 'mmdet':
        data = replace(data, classes=request.classes)
    swap = plan_config(base, data, chosen, settings, options)
    title = f'{Path(request.base).name} on {request.root}.'
    with silence():
        text = render_child(base, swap, relative_base(full_name(request.base), out), title)
        # What was written is checked and tried, not what was planned.
        config = read_back(text, out, swap.config)
    parts = parts_of_config(config)
    repair = f'{request.command} --repair'
    fix = f'fix the files, or leave them out by: {repair}'
    fixes = FixCommands(fix, fix, fix, fix)
    found = check_parts([replace(part, fix=fixes) for part in parts])
    found = [replace(i, fix=fix) if i.check == 'leak' and i.fix else i for i in found]
    read = [replace(i, fix=i.fix.replace('--repair', f'`{repair}`')) for i in data.report.issues]
    issues = read + found
    if not all(issue.is_note for issue in issues):
        raise BadDataError(issues)
    with silence():
        what_ran = try_config(config, len(data.classes))
    check_out(out)
    write_file(out, text)
    written = folder if folder.exists() else None
    return Made(base, swap, data, chosen, issues, written, what_ran)


def _repair(data: OwnData, chosen: dict[str, Part]) -> dict[str, Part]:
    """Repair parts; what reading could not use is left out already, and only noted."""
    issues = data.report.issues
    issues[:] = [replace(issue, fix='') for issue in issues]
    has_labels = any(sample.label_file for sample in chosen['train'].samples)
    allowed = {*range(len(data.classes)), IGNORED} if has_labels and not data.values else None
    report = Report('data', all_images=True)
    chosen = repair_parts(chosen, report, allowed)
    issues += report.issues
    return chosen


def _refuse_empty(data: OwnData, chosen: dict[str, Part]) -> None:
    empty = [role for role, part in chosen.items() if not part.samples]
    if empty:
        report = Report('data', all_images=False)
        fix = 'name other parts by --val and --test, or bring the images'
        names = [f'{role}: {chosen[role].name}' for role in empty]
        report.add('empty', 'parts have no image with its truth', names, fix)
        raise BadDataError(data.report.issues + report.issues)
    if not data.classes:
        raise ValueError(f'the data ({data.layout}) has no class: no object in it has a name')
