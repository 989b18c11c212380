"""Checks of images in a folder per class, or with a list of labels."""

from __future__ import annotations

import os
import shlex
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path

from .files import Progress, colour_notes, examine, file_findings, list_files, read_list
from .findings import Finding, found
from .fixes import unpack_classes
from .parts import ClassificationPart


def check_classification(
    part: ClassificationPart, every: bool, progress: Progress
) -> Iterator[Finding]:
    """Yields what is wrong with a part.

    Args:
        part: What is expected.
        every: Whether to open every image, not a sample.
        progress: Shows how far it is.
    """
    if not part.image_dir.is_dir():
        what = 'folder of images is missing'
        yield from found(part.name, 'layout', what, part.mending.images, [part.image_dir])
        return
    files = list_files(part.image_dir)
    if part.ann_file is not None:
        labels = yield from _read_labels(part)
        yield from _check_list(part, labels, files)
        names = list(labels)
    else:
        names = [name for name in files if name.lower().endswith(part.suffixes)]
        loose = [name for name in names if '/' not in name]
        if loose and len(loose) == len(names):
            what = 'images lie in no folder of a class, and there is no list of labels'
            yield from found(part.name, 'flat', what, part.mending.annotations, loose)
        else:
            yield from _check_folders(part, files, names, loose)
            names = [name for name in names if '/' in name]
    if part.num_images is not None and len(names) != part.num_images:
        source = part.ann_file or part.image_dir
        what = f'{source} has {len(names)} images, {part.num_images} are expected'
        yield Finding(part.name, 'count', what, part.mending.images)
    examined = examine(part.image_dir, files, names, every, progress, f'{part.name}: images')
    yield from file_findings(part.name, 'images', examined, part.mending.images)
    yield from colour_notes(part.name, examined)


def class_folders(folder: Path) -> list[str]:
    """Lists the folders that MMPretrain takes for classes, hidden ones too, in its order."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _check_folders(
    part: ClassificationPart, files: dict[str, int], images: list[str], loose: list[str]
) -> Iterator[Finding]:
    folders = class_folders(part.image_dir)
    filled = {name.split('/')[0] for name in images if '/' in name}
    archives = [name for name in files if '/' not in name and name.endswith('.tar')]
    mend = unpack_classes(part.image_dir)
    yield from found(part.name, 'packed', 'classes are not unpacked', mend, archives)
    what = 'images lie in no folder of a class: they are not read'
    mend = 'move them into the folder of their class'
    yield from found(part.name, 'loose-image', what, mend, loose)
    hidden = [name for name in folders if name.startswith(('.', '__'))]
    quoted = ' '.join(shlex.quote(str(part.image_dir / name)) for name in hidden)
    what = 'folders of other programs count as classes'
    yield from found(part.name, 'strange-folder', what, f'rm -r {quoted}', hidden)
    classes = [name for name in folders if name not in hidden]
    empty = [name for name in classes if name not in filled]
    what = 'folders of classes hold no images'
    mend = '' if part.may_be_empty else part.mending.images
    yield from found(part.name, 'empty-class', what, mend, empty, note=part.may_be_empty)
    if part.num_classes is not None and len(classes) != part.num_classes:
        what = f'{len(classes)} folders of classes are there, {part.num_classes} are expected'
        yield Finding(part.name, 'classes', what, part.mending.images)
    yield from _check_order(part, classes)


def _check_order(part: ClassificationPart, classes: list[str]) -> Iterator[Finding]:
    """Labels count the sorted folders, whatever order a config gives their names."""
    if part.classes is None or set(classes) != set(part.classes):
        return
    pairs = zip(classes, part.classes, strict=False)
    wrong = [f'folder {have}, class {want}' for have, want in pairs if have != want]
    mend = f'say metainfo=dict(classes={tuple(classes)!r}) in the config'
    yield from found(part.name, 'class-order', 'classes stand in another order', mend, wrong)


def _read_labels(part: ClassificationPart) -> Generator[Finding, None, dict[str, int]]:
    """Returns the labels of the list by the names of the images."""
    path, mend = part.ann_file, part.mending.annotations
    lines = yield from read_list(part.name, 'list of labels', path, mend)
    labels: dict[str, int] = {}
    wrong, doubled = [], []
    for number, line in enumerate(lines, 1):
        name, _, label = line.strip().rpartition(' ')
        if not name or not label.isdigit():
            wrong.append(f'line {number}: {line!r}')
        elif name in labels:
            doubled.append(f'line {number}: {name}')
        else:
            labels[name] = int(label)
    what = f'lines of {path} are no path and label'
    yield from found(part.name, 'list', what, mend, wrong)
    yield from found(part.name, 'doubled', f'images stand twice in {path}', mend, doubled)
    return labels


def _check_list(
    part: ClassificationPart, labels: dict[str, int], files: dict[str, int]
) -> Iterator[Finding]:
    missing = [n for n in labels if n not in files and not (part.image_dir / n).is_file()]
    mend = part.mending.images
    flat = all('/' not in name for name in labels)
    if missing and flat and class_folders(part.image_dir):
        # The list is for images in one folder; without it the folders tell the classes.
        path = shlex.quote(str(part.ann_file))
        mend = f'mv {path} {path}.unused'
    what = f'images listed in {part.ann_file} are missing'
    yield from found(part.name, 'missing-image', what, mend, missing)
    spare = [n for n in files if n.lower().endswith(part.suffixes) and n not in labels]
    what = f'images are not listed in {part.ann_file}'
    if labels and len(missing) < len(labels):
        yield from found(part.name, 'unlisted-image', what, part.mending.annotations, spare)
    yield from _check_label_values(part, labels)


def _check_label_values(part: ClassificationPart, labels: dict[str, int]) -> Iterator[Finding]:
    mend = part.mending.annotations
    if part.num_classes is not None and labels:
        strange = [f'{n}: {label}' for n, label in labels.items() if label >= part.num_classes]
        what = f'labels are not within 0 to {part.num_classes - 1}'
        yield from found(part.name, 'label-values', what, mend, strange)
        absent = sorted(set(range(part.num_classes)) - set(labels.values()))
        yield from found(part.name, 'empty-class', 'labels occur nowhere', mend, absent)
    by_folder = defaultdict(set)
    for name, label in labels.items():
        if '/' in name:
            by_folder[name.split('/')[0]].add(label)
    mixed = [
        f'{folder}: {sorted(several)}' for folder, several in by_folder.items() if len(several) > 1
    ]
    what = 'folders have images of several labels'
    yield from found(part.name, 'label-values', what, mend, mixed, note=not part.wordnet_order)
    if part.wordnet_order and not mixed:
        wrong = [
            f'{folder}: {min(by_folder[folder])}, expected {index}'
            for index, folder in enumerate(sorted(by_folder))
            if by_folder[folder] != {index}
        ]
        what = 'folders have another label than their place in the order of names'
        yield from found(part.name, 'class-order', what, mend, wrong)
