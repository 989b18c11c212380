"""Data of one's own in memory: parts, images and their truth."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from contnet_mm.datasets.check.issues import DatasetIssue, Report

# What the parts of data sets are called, in the order in which they are looked for.
ROLES = {
    'train': ('train', 'training', 'trainval'),
    'val': ('val', 'valid', 'validation', 'dev'),
    'test': ('test', 'testing'),
}
UNDIVIDED = 'all'


@dataclass(frozen=True)
class Box:
    """One object.

    Args:
        name: Its class.
        bbox: Left, top, width and height in pixels.
        segmentation: Polygons or run lengths as in COCO; empty where only the box is known.
        area: In pixels, of the mask where there is one; None: what box or polygons cover.
        ignored: Whether it neither counts as right nor as wrong: crowds, and what is difficult.
    """

    name: str
    bbox: tuple[float, float, float, float]
    segmentation: list | dict = field(default_factory=list)
    area: float | None = None
    ignored: bool = False


@dataclass(frozen=True)
class Sample:
    """One image with its truth.

    Args:
        image: The file.
        boxes: The objects, where the data set has boxes.
        size: Height and width in pixels, where the boxes need it.
        label_file: The label image, where there is one.
        name: The class of the whole image, where it has one.
    """

    image: Path
    boxes: tuple[Box, ...] = ()
    size: tuple[int, int] | None = None
    label_file: Path | None = None
    name: str = ''


@dataclass(frozen=True)
class Part:
    """One part of a data set.

    Args:
        name: What the data calls it, such as 'valid'.
        samples: Its images.
        source: What a data set class reads as it is, with nothing converted: a COCO file, or a
            folder of classes or of images; None where there is none.
        image_dir: Folder that the names in ``source`` start from.
        issues: What could not be read of ``source``, which its check finds as well.
    """

    name: str
    samples: tuple[Sample, ...]
    source: Path | None = None
    image_dir: Path | None = None
    issues: tuple[DatasetIssue, ...] = ()


@dataclass(frozen=True)
class OwnData:
    """A data set of one's own, as one of the readers found it.

    Args:
        layout: What it looks like, in words.
        classes: Names, in the order of their labels.
        parts: By name.
        report: What is wrong with it, as far as reading tells.
        palette: A colour for each class, where the data has some.
        values: Label by the value of a pixel, or its colour, where label images hold no labels.
        has_masks: Whether objects have masks.
    """

    layout: str
    classes: tuple[str, ...]
    parts: dict[str, Part]
    report: Report
    palette: tuple[tuple[int, int, int], ...] = ()
    values: dict | None = None
    has_masks: bool = False


def role_of(name: str) -> str | None:
    """Return 'train', 'val' or 'test' for the name of a part, None for any other name.

    >>> role_of('valid'), role_of('train2017'), role_of('cats')
    ('val', 'train', None)
    """
    stem = re.sub(r'[_-]?\d*$', '', name.lower())
    return next((role for role, names in ROLES.items() if stem in names), None)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file.

    Raises:
        ValueError: If it is not UTF-8; the message names it.
    """
    try:
        return path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not UTF-8: {error}') from error


def part_in(text: str) -> str | None:
    """Return the first word of a name that is the name of a part: 'train2017' of a COCO file."""
    return next((word for word in re.split(r'[^A-Za-z0-9]+', text) if role_of(word)), None)


def choose_parts(data: OwnData, val: str | None, test: str | None) -> dict[str, Part]:
    """Return the parts to train, validate and test on, by these words.

    Args:
        data: What was read.
        val: The name of a part; or a share of the training images such as ``'0.2'``, which is held
            out; None: whichever part of the data is for that.
        test: The name of a part; None: whichever is for that, else the one to validate on.

    Raises:
        ValueError: If there is no such part.
    """
    share = _read_share(val)
    train = _find(data, 'train', None) or data.parts.get(UNDIVIDED)
    if train is None:
        raise ValueError(f'no part of the data is for training: there are {_names(data)}')
    chosen = {'train': train}
    if share is not None:
        chosen['train'], chosen['val'] = hold_out(train, share)
    else:
        chosen['val'] = _find(data, 'val', val)
    if chosen['val'] is None:
        raise ValueError(
            f'no part of the data is for validation: there are {_names(data)}. Name one by --val '
            'PART, or hold out a share of the training images at random by --val 0.2; do not where '
            'images are alike, such as those of one film'
        )
    chosen['test'] = _find(data, 'test', test) or chosen['val']
    return chosen


def hold_out(part: Part, share: float) -> tuple[Part, Part]:
    """Divide a part at random, always in the same way; of each class the same share.

    Args:
        part: What is divided.
        share: Of the images that the second part gets, above 0 and below 1.

    Returns:
        What stays, and what is held out: one image at least of each class that has two.

    Raises:
        ValueError: If that leaves one of them empty.
    """
    groups = defaultdict(list)
    for sample in sorted(part.samples, key=lambda sample: sample.image):
        groups[sample.name].append(sample)
    kept, held = [], []
    for samples in groups.values():
        random.Random(0).shuffle(samples)
        count = min(max(1, round(len(samples) * share)), len(samples) - 1)
        held += samples[:count]
        kept += samples[count:]
    if not held or not kept:
        raise ValueError(f'{len(part.samples)} images are too few to hold out {share} of them')
    divided = (sorted(some, key=lambda sample: sample.image) for some in (kept, held))
    names = (f'{part.name} without {share}', f'{share} of {part.name}')
    pairs = zip(names, divided, strict=True)
    return tuple(replace(part, name=n, samples=tuple(s), source=None) for n, s in pairs)


def _read_share(val: str | None) -> float | None:
    try:
        share = float(val)
    except (TypeError, ValueError):
        return None
    if not 0 < share < 1:
        raise ValueError(f'--val {val}: a share must be above 0 and below 1, such as 0.2')
    return share


def _find(data: OwnData, role: str, name: str | None) -> Part | None:
    if name is not None:
        if name not in data.parts:
            raise ValueError(f'--{role} {name}: no part of that name, there are {_names(data)}')
        return data.parts[name]
    found = [part for part in data.parts.values() if role_of(part.name) == role]
    order = ROLES[role]
    return min(
        found,
        key=lambda part: order.index(re.sub(r'[_-]?\d*$', '', part.name.lower())),
        default=None,
    )


def _names(data: OwnData) -> str:
    return ', '.join(f'{part.name} ({len(part.samples)} images)' for part in data.parts.values())
