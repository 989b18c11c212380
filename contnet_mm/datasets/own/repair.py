"""Leave out of parts what nothing can be learned from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from contnet_mm.datasets.check.annotations import SLACK
from contnet_mm.datasets.check.duplicates import find_duplicates
from contnet_mm.datasets.check.files import open_images
from contnet_mm.datasets.check.issues import Report

from .data import Box, Part, Sample

COPIES = 'copies of images of the same or of another part are left out'
OUTSIDE = 'boxes that stick out of their images are cut at the border'


def repair_parts(chosen: dict[str, Part], report: Report, allowed: set[int] | None) -> dict:
    """Return parts without damage; what was changed is no longer read from its own source.

    Left out are images that do not open, label images that do not, differ in size or hold other
    labels, boxes without area, second copies of an image, and images for training that another
    part has. Boxes that stick out of their image are cut at its border.

    Args:
        chosen: The parts by 'train', 'val' and 'test'.
        report: Gets a note for each kind of change.
        allowed: Labels that label images may hold; None: any.
    """
    repaired: dict[int, Part] = {}
    changes: dict[str, list[str]] = {}
    taken: set[Path] = set()
    # What is tested on keeps its images, what is trained on gives them up.
    for role in ('test', 'val', 'train'):
        part = chosen[role]
        if id(part) in repaired:
            continue
        samples = [_repair(sample, changes) for sample in _sound(part, changes, allowed)]
        paths = [*taken, *(sample.image for sample in samples)]
        twins = find_duplicates({path: path.stat().st_size for path in paths})
        unique = []
        for sample in samples:
            group = twins.get(sample.image, [sample.image])
            if taken.isdisjoint(group):
                unique.append(sample)
                taken.add(sample.image)
            else:
                changes.setdefault(COPIES, []).append(str(sample.image))
        same = tuple(unique) == part.samples and not part.issues
        repaired[id(part)] = part if same else replace(part, samples=tuple(unique), source=None)
    for what, names in changes.items():
        report.add('repaired', what, names)
    return {role: repaired[id(part)] for role, part in chosen.items()}


def _sound(part: Part, changes: dict[str, list[str]], allowed: set[int] | None) -> list[Sample]:
    """Return the samples whose files open and fit."""
    images = _open([sample.image for sample in part.samples])
    labels = _open([one.label_file for one in part.samples if one.label_file], values=True)
    sound = []
    for sample in part.samples:
        image = images.get(str(sample.image))
        label = labels.get(str(sample.label_file))
        if image is None:
            changes.setdefault('images that do not open are left out', []).append(str(sample.image))
        elif sample.label_file and (
            label is None
            or label.size != image.size
            or (allowed is not None and not label.values <= allowed)
        ):
            changes.setdefault(
                'label images that do not fit are left out with their images', []
            ).append(str(sample.label_file))
        else:
            sound.append(sample)
    return sound


def _open(paths: list[Path], values: bool = False) -> dict:
    sizes = {str(path): path.stat().st_size for path in paths if path.is_file()}
    silent = Report('repair', all_images=True)
    return open_images(silent, 'images', Path(), list(sizes), sizes, '', values)


def _repair(sample: Sample, changes: dict[str, list[str]]) -> Sample:
    """Return a sample whose boxes have an area and lie inside the image."""
    boxes = []
    for box in sample.boxes:
        clipped = clip(box, sample.size)
        if clipped is not box:
            what = 'boxes without area are left out' if clipped is None else OUTSIDE
            changes.setdefault(what, []).append(f'{sample.image.name}: {box.name} {list(box.bbox)}')
        if clipped is not None:
            boxes.append(clipped)
    return (
        sample
        if len(boxes) == len(sample.boxes)
        and all(a is b for a, b in zip(boxes, sample.boxes, strict=True))
        else replace(sample, boxes=tuple(boxes))
    )


def clip(box: Box, size: tuple[int, int]) -> Box | None:
    """Return a box cut at the border of its image; None if less than a pixel of it remains.

    One that sticks out by less than the check of annotations allows stays as it is.

    Args:
        box: In pixels.
        size: Height and width of the image.
    """
    left, top, width, height = box.bbox
    right, bottom = min(left + width, size[1]), min(top + height, size[0])
    new = (max(left, 0), max(top, 0))
    new = (*new, right - new[0], bottom - new[1])
    if new[2] < 1 or new[3] < 1:
        return None
    same = all(abs(a - b) <= SLACK for a, b in zip(new, box.bbox, strict=True))
    return box if same else replace(box, bbox=new, area=None)
