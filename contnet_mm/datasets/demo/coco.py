"""Writes the scenes in COCO's layout: ``{train,val}/*.jpg`` and ``annotations/*.json``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from .scenes import Scene
from .sources import NUM_CLASSES

CATEGORIES = [
    {'id': digit + 1, 'name': str(digit), 'supercategory': 'digit'} for digit in range(NUM_CLASSES)
]


def describe_mask(mask: np.ndarray) -> dict:
    """Describes a mask as COCO does.

    Args:
        mask: Pixels of one instance, [height, width] bool.

    Returns:
        Fields ``area``, ``bbox`` (x, y, width, height), ``iscrowd`` and ``segmentation``
        (compressed run lengths as str, which JSON can hold).
    """
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        'area': int(coco_mask.area(rle)),
        'bbox': [float(value) for value in coco_mask.toBbox(rle)],
        'iscrowd': 0,
        'segmentation': {'size': list(rle['size']), 'counts': rle['counts'].decode()},
    }


class CocoWriter:
    """Writes the images of one part as they come and its annotations at the end.

    Args:
        root: Folder of the COCO data set.
        part: 'train' or 'val'.
    """

    def __init__(self, root: Path, part: str) -> None:
        self.image_dir = root / part
        self.annotation_path = root / 'annotations' / f'instances_{part}.json'
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        for folder in (self.image_dir, self.annotation_path.parent):
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, scene: Scene) -> None:
        """Writes the next image and remembers its annotations."""
        height, width = scene.image.shape[:2]
        # Numbers start at 1: COCO's evaluator takes annotation 0 for "no match".
        image_id = len(self.images) + 1
        name = f'{image_id:06d}.jpg'
        Image.fromarray(scene.image).save(self.image_dir / name, quality=95, subsampling=0)
        self.images.append({'id': image_id, 'file_name': name, 'height': height, 'width': width})
        for digit in scene.digits:
            annotation = describe_mask(digit.visible)
            annotation.update(
                id=len(self.annotations) + 1, image_id=image_id, category_id=digit.label + 1
            )
            self.annotations.append(annotation)

    def content(self) -> tuple[Path, dict]:
        """Returns the annotation file's path and content."""
        content = {
            'info': {'description': 'handwritten digits on photographs'},
            'licenses': [],
            'images': self.images,
            'annotations': self.annotations,
            'categories': CATEGORIES,
        }
        return self.annotation_path, content
