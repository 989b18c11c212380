"""Writes the scenes in COCO's layout: ``{train,val}/*.jpg`` and ``annotations/*.json``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from .scenes import Scene
from .sources import NUM_CLASSES

CATEGORIES = [
    {'id': digit + 1, 'name': str(digit), 'supercategory': 'digit'} for digit in range(NUM_CLASSES)
]
# Of PNG files: compressing harder took a third of the time of making a data set.
COMPRESS_LEVEL = 1


def describe_mask(mask: np.ndarray) -> dict:
    """Describe a mask as COCO does.

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


class CocoFile:
    """Collects images and annotations for a COCO file.

    Ids start at 1: COCO's evaluator takes annotation 0 for "no match".

    Args:
        path: The file.
        content: What else it holds, such as the categories.
    """

    def __init__(self, path: Path, **content: object) -> None:
        self.path = path
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.content = {**content, 'images': self.images, 'annotations': self.annotations}

    def add_image(self, name: str, pixels: np.ndarray, **fields: object) -> None:
        """Add the next image, pixels [height, width, ...]."""
        height, width = pixels.shape[:2]
        entry = {'id': len(self.images) + 1, 'file_name': name, 'height': height, 'width': width}
        self.images.append({**entry, **fields})

    def add_instance(self, mask: np.ndarray, category_id: int) -> None:
        """Add an instance of the last image, mask [height, width] bool."""
        ids = {'id': len(self.annotations) + 1, 'image_id': len(self.images)}
        self.annotations.append({**ids, 'category_id': category_id, **describe_mask(mask)})

    def write(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, sort_keys=True) + '\n')


def save_image(pixels: np.ndarray, path: Path, **options: object) -> None:
    """Write an image, [height, width] or [height, width, 3], with options of Pillow's writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def open_coco(root: Path, part: str) -> CocoFile:
    """Return the empty annotations of a part, 'train' or 'val'."""
    path = root / 'annotations' / f'instances_{part}.json'
    info = {'description': 'handwritten digits on photographs'}
    return CocoFile(path, info=info, licenses=[], categories=CATEGORIES)


def write_coco(scene: Scene, image_dir: Path, annotations: CocoFile) -> None:
    """Write the next image of a part and add its annotations."""
    name = f'{len(annotations.images) + 1:06d}.jpg'
    save_image(scene.image, image_dir / name, quality=95, subsampling=0)
    annotations.add_image(name, scene.image)
    for digit in scene.digits:
        annotations.add_instance(digit.visible, digit.label + 1)
