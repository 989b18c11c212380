"""Writes the scenes in Cityscapes' layout, with mmdet's instance annotations beside it.

Cityscapes' evaluator knows its own classes only, so digits and photographs borrow their names:
digits 0 to 7 are its eight instance classes, 8 and 9 two of its stuff classes, and each
photograph is one more stuff class (see ``PHOTOGRAPHS`` in sources.py).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import id2label, labels, name2label

from .coco import COMPRESS_LEVEL, CocoFile, save_image
from .scenes import Scene
from .sources import PHOTOGRAPHS

CITY = 'demo'
# Cityscapes label that stands for each digit, 0 to 9.
DIGIT_LABELS = ['person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle']
DIGIT_LABELS += ['traffic light', 'traffic sign']
# As mmdet's converter selects and orders them.
CATEGORIES = [
    {'id': label.id, 'name': label.name}
    for label in labels
    if label.hasInstances and not label.ignoreInEval
]
# Cityscapes counts instances of a class from 0 in label * 1000 + number.
INSTANCES_PER_LABEL = 1000


def label_maps(scene: Scene) -> dict[str, np.ndarray]:
    """Paint the three label images of a scene.

    Returns:
        ``labelIds`` and ``labelTrainIds``, [height, width] uint8, and ``instanceIds``, uint16.
    """
    background = name2label[PHOTOGRAPHS[scene.photograph]].id
    label_ids = np.full(scene.image.shape[:2], background, np.uint8)
    instance_ids = label_ids.astype(np.uint16)
    counts: Counter[int] = Counter()
    for digit in scene.digits:
        label = name2label[DIGIT_LABELS[digit.label]]
        label_ids[digit.visible] = instance_ids[digit.visible] = label.id
        if label.hasInstances:
            number = label.id * INSTANCES_PER_LABEL + counts[label.id]
            instance_ids[digit.visible] = number
            counts[label.id] += 1
    train_ids = np.full(256, 255, np.uint8)
    for label_id in np.unique(label_ids):
        train_ids[label_id] = id2label[label_id].trainId
    return {
        'labelIds': label_ids,
        'labelTrainIds': train_ids[label_ids],
        'instanceIds': instance_ids,
    }


def trace_polygon(shape: np.ndarray) -> list[list[int]]:
    """Trace a one-piece shape as a single polygon.

    Cityscapes' polygons have no holes: each hole is joined to the outline by a bridge of no
    width where they come nearest, so that filling the polygon leaves the hole open.

    Args:
        shape: The shape, [height, width] bool.

    Returns:
        Corners as (x, y) in pixels.
    """
    contours, hierarchy = cv2.findContours(
        shape.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    loops = [contour[:, 0] for contour in contours]
    is_hole = hierarchy[0, :, 3] >= 0
    path = loops[int(np.flatnonzero(~is_hole)[0])]
    holes = [loops[index] for index in np.flatnonzero(is_hole)]
    while holes:
        # The nearest hole first: its bridge cannot cross another hole.
        gaps = [((path[:, None] - hole) ** 2).sum(axis=2) for hole in holes]
        nearest = int(np.argmin([gap.min() for gap in gaps]))
        hole, gap = holes.pop(nearest), gaps[nearest]
        start, end = np.unravel_index(gap.argmin(), gap.shape)
        loop = np.concatenate([hole[end:], hole[: end + 1]])
        path = np.concatenate([path[: start + 1], loop, path[start:]])
    steps = np.diff(path, axis=0, append=path[:1])
    corners = (steps != np.roll(steps, 1, axis=0)).any(axis=1)
    return path[corners].tolist()


def describe_polygons(scene: Scene) -> dict:
    """Describe a scene as Cityscapes' polygon files do: objects from back to front."""
    height, width = scene.image.shape[:2]
    frame = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    objects = [{'label': PHOTOGRAPHS[scene.photograph], 'polygon': frame}]
    for digit in scene.digits:
        polygon = trace_polygon(digit.shape)
        objects.append({'label': DIGIT_LABELS[digit.label], 'polygon': polygon})
    return {'imgHeight': height, 'imgWidth': width, 'objects': objects}


def open_cityscapes(root: Path, part: str) -> CocoFile:
    """Return the empty annotations, as mmdet reads them, of a part, 'train' or 'val'."""
    path = root / 'annotations' / f'instancesonly_filtered_gtFine_{part}.json'
    return CocoFile(path, categories=CATEGORIES)


def write_cityscapes(scene: Scene, root: Path, part: str, annotations: CocoFile) -> None:
    """Write the files of the next image of a part and add its annotations."""
    image_dir, label_dir = root / 'leftImg8bit' / part, root / 'gtFine' / part
    stem = f'{CITY}/{CITY}_000000_{len(annotations.images):06d}'
    image_name, label_stem = f'{stem}_leftImg8bit.png', f'{stem}_gtFine'
    save_image(scene.image, image_dir / image_name, compress_level=COMPRESS_LEVEL)
    maps = label_maps(scene)
    for kind, values in maps.items():
        save_image(values, label_dir / f'{label_stem}_{kind}.png', compress_level=COMPRESS_LEVEL)
    polygons = json.dumps(describe_polygons(scene), sort_keys=True)
    (label_dir / f'{label_stem}_polygons.json').write_text(polygons)
    annotations.add_image(image_name, scene.image, segm_file=f'{label_stem}_labelIds.png')
    instance_ids = maps['instanceIds']
    for number in np.unique(instance_ids[instance_ids >= INSTANCES_PER_LABEL]):
        category_id = int(number) // INSTANCES_PER_LABEL
        annotations.add_instance(instance_ids == number, category_id)
