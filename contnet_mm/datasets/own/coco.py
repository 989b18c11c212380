"""Reading and writing COCO files."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from contnet_mm.datasets.check.annotations import (
    Entries,
    is_number,
    read_json,
    select_complete,
)
from contnet_mm.datasets.check.files import is_file
from contnet_mm.datasets.check.issues import Report

from .data import UNDIVIDED, Box, OwnData, Part, Sample, part_in

LISTS = ('images', 'annotations', 'categories')
FIX = 'export the file again; --repair leaves the entries out'
NUM_TRIED = 20  # images that tell in which folder they lie


def find(root: Path) -> bool:
    """Return whether a folder holds COCO files."""
    return bool(_files(root))


def read(root: Path, report: Report) -> OwnData:
    """Read COCO files in a folder, in its ``annotations``, or one in the folder of each part.

    What is wrong inside a file is left to the check of what is to be trained on.

    Args:
        root: The folder.
        report: Gets two files for one part.
    """
    parts: dict[str, Part] = {}
    classes: dict[str, None] = {}
    doubled = []
    has_masks = False
    for path in _files(root):
        name = part_in(path.stem) or part_in(path.parent.name) or UNDIVIDED
        if name in parts:
            doubled.append(f'{name}: {parts[name].source} and {path}')
            continue
        found = Report(name, False)
        content = _read(found, path)
        image_dir = _image_dir(root, path, name, [one['file_name'] for one in content['images']])
        names = {category['id']: category['name'] for category in content['categories']}
        samples = _samples(content, names, image_dir)
        parts[name] = Part(name, samples, path, image_dir, tuple(found.issues))
        classes.update(dict.fromkeys(names.values()))
        has_masks |= any(one.get('segmentation') for one in content['annotations'])
    fix = 'move one of them out of the folder'
    report.add('doubled', 'parts have two COCO files', doubled, fix)
    return OwnData('COCO JSON', tuple(classes), parts, report, has_masks=has_masks)


def make_content(part: Part, classes: tuple[str, ...], image_dir: Path) -> dict:
    """Return what a COCO file says of a part.

    Args:
        part: With boxes.
        classes: Their ids count from 1.
        image_dir: Folder that the names of the images start from.
    """
    ids = {name: number for number, name in enumerate(classes, 1)}
    images, annotations = [], []
    for number, sample in enumerate(part.samples, 1):
        height, width = sample.size
        name = Path(os.path.relpath(sample.image, image_dir)).as_posix()
        images.append(dict(id=number, file_name=name, height=height, width=width))
        for box in sample.boxes:
            annotation = dict(
                id=len(annotations) + 1,
                image_id=number,
                category_id=ids[box.name],
                bbox=[round(value, 3) for value in box.bbox],
                area=round(measure_area(box), 3),
                iscrowd=int(box.ignored),
            )
            if box.segmentation:
                annotation['segmentation'] = box.segmentation
            annotations.append(annotation)
    categories = [dict(id=number, name=name) for name, number in ids.items()]
    return dict(images=images, annotations=annotations, categories=categories)


def measure_area(box: Box) -> float:
    """Return the area of an object in pixels: as given, else of its polygons, else of its box."""
    if box.area is not None:
        return box.area
    if not box.segmentation or isinstance(box.segmentation, dict):
        return max(0, box.bbox[2]) * max(0, box.bbox[3])
    area = 0.0
    for polygon in box.segmentation:
        x, y = np.array(polygon[::2]), np.array(polygon[1::2])
        area += abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    return float(area)


def _read(report: Report, path: Path) -> Entries:
    """Return the complete entries; an area that is missing is filled in."""
    content = read_json(report, path, FIX)
    lists = content if isinstance(content, dict) else {}
    entries = lists.get('annotations')
    for one in entries if isinstance(entries, list) else []:
        box = one.get('bbox') if isinstance(one, dict) else None
        is_box = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
        if is_box and 'area' not in one:
            one['area'] = box[2] * box[3]
    return select_complete(report, lists, path, FIX, labelled=True)


def _files(root: Path) -> list[Path]:
    """Return the JSON files that look like COCO's; a broken one too, so that it is reported."""
    found = [
        *root.glob('*.json'),
        *root.glob('annotations/*.json'),
        *(path for path in root.glob('*/*.json') if part_in(path.parent.name)),
    ]
    return [path for path in sorted(set(found)) if _is_coco(path)]


def _is_coco(path: Path) -> bool:
    content = path.read_bytes()
    return all(f'"{key}"'.encode() in content for key in LISTS) or part_in(path.stem) is not None


def _image_dir(root: Path, path: Path, name: str, names: list[str]) -> Path:
    """Return the folder that holds most of some of the images."""
    folders = [root / name, root / 'images' / name, root / name / 'images', root / 'images', root]
    folders = dict.fromkeys([path.parent, path.parent / 'images', *folders])
    some = names[:: max(1, len(names) // NUM_TRIED)]
    there = {folder: sum(is_file(folder / one) for one in some) for folder in folders}
    best = max(there, key=there.get)
    return (
        best if there[best] else next((f for f in folders if f.is_dir() and f != path.parent), root)
    )


def _samples(content: dict, names: dict, image_dir: Path) -> tuple[Sample, ...]:
    boxes = defaultdict(list)
    for one in content['annotations']:
        if one['category_id'] in names:
            box = Box(
                names[one['category_id']],
                tuple(one['bbox']),
                one.get('segmentation') or [],
                one['area'],
                bool(one.get('iscrowd')),
            )
            boxes[one['image_id']].append(box)
    return tuple(
        Sample(
            image_dir / one['file_name'],
            tuple(boxes[one['id']]),
            (int(one['height']), int(one['width'])),
        )
        for one in content['images']
    )
