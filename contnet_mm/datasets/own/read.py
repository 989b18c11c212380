"""Find out what a folder holds, and read it."""

from __future__ import annotations

from pathlib import Path

from contnet_mm.datasets.check.issues import Report

from . import coco, folders, masks, voc, yolo
from .data import OwnData

READERS = {'mmdet': (yolo, voc, coco), 'mmseg': (masks,), 'mmpretrain': (folders,)}
EXPECTED = {
    'mmdet': 'COCO JSON, Pascal VOC XML, or YOLO text with a data.yaml or classes.txt',
    'mmseg': 'a folder of images and one of label images: images/ and masks/, for instance',
    'mmpretrain': 'a folder per class, or train/ and val/ with a folder per class in each',
}


def read_data(library: str, root: Path, classes: tuple[str, ...] | None = None) -> OwnData:
    """Read a data set for a config of a library.

    Args:
        library: 'mmdet', 'mmseg' or 'mmpretrain'.
        root: The folder.
        classes: Names in the order of their labels, or those to train on; None: all of the data.

    Raises:
        ValueError: If it is no folder, holds nothing that is known, or lacks one of the classes.
    """
    if not root.is_dir():
        raise ValueError(f'{root} is no folder; name the one that holds the data')
    report = Report('data', all_images=False)
    found = next((one for one in READERS[library] if one.find(root)), None)
    others = []
    if found in (None, folders):  # any folders of images look like classes, images/ and masks/, too
        others = [o for o in READERS if o != library and any(r.find(root) for r in READERS[o])]
    if found is None or others:
        hint = f'; what is there goes with a base of {" or ".join(others)}' if others else ''
        raise ValueError(f'{root} holds no {EXPECTED[library]}{hint}')
    if found is masks:
        return masks.read(root, report, classes)
    data = found.read(root, report)
    if classes is None:
        return data
    unknown = [name for name in classes if name not in data.classes]
    if unknown or (found is folders and len(classes) != len(data.classes)):
        raise ValueError(
            f'--classes {" ".join(classes)}: the data has {", ".join(data.classes)}'
            + ('; each folder is a class' if found is folders else '')
        )
    if found is folders:  # whose order is that of their names
        return data
    others = [name for name in data.classes if name not in classes]
    return OwnData(data.layout, (*classes, *others), data.parts, report, has_masks=data.has_masks)
