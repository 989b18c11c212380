"""The layouts that the libraries' own configs read, and those of the demo data."""

from __future__ import annotations

from pathlib import Path

from .fixes import (
    cityscapes_mending,
    coco_mending,
    demo_mending,
    demo_settings,
    imagenet_mending,
)
from .library import library_classes
from .parts import ClassificationPart, DetectionPart, Part, SegmentationPart

KINDS = ('coco', 'cityscapes', 'imagenet')
COCO_IMAGES = {'train2017': 118287, 'val2017': 5000}
CITYSCAPES_IMAGES = {'train': 2975, 'val': 500}
CITYSCAPES_CLASSES = 19
IMAGENET_IMAGES = {'train': 1281167, 'val': 50000}
IMAGENET_CLASSES = 1000
DEMO_CLASSES = tuple('0123456789')


def parts_of_folder(kind: str, root: str | Path) -> list[Part]:
    """Says what a folder should hold.

    The demo data is known by its settings.json, and has counts and names of its own.

    Args:
        kind: One of ``KINDS``.
        root: Folder of the data set, such as data/coco.

    Raises:
        ValueError: If the kind is not known or the folder does not exist.
    """
    if kind not in KINDS:
        raise ValueError(f'kind of data set is {kind!r}, must be one of {", ".join(KINDS)}')
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f'{root} is no folder; name the one that holds the data set')
    demo = demo_settings(root)
    makers = {'coco': _coco, 'cityscapes': _cityscapes, 'imagenet': _imagenet}
    return makers[kind](root, demo)


def _coco(root: Path, demo: tuple[Path, dict] | None) -> list[Part]:
    if demo:
        counts = demo_counts(demo[1])
        classes, note = DEMO_CLASSES, ''
    else:
        counts = COCO_IMAGES
        classes, note = library_classes('mmdet', 'CocoDataset')
    return [
        DetectionPart(
            name=name,
            image_dir=root / name,
            ann_file=root / 'annotations' / f'instances_{name}.json',
            mending=demo_mending(*demo) if demo else coco_mending(root, name),
            classes=classes,
            classes_note=note,
            num_images=count,
        )
        for name, count in counts.items()
    ]


def _cityscapes(root: Path, demo: tuple[Path, dict] | None) -> list[Part]:
    counts = demo_counts(demo[1]) if demo else CITYSCAPES_IMAGES
    mending = demo_mending(*demo) if demo else cityscapes_mending(root)
    classes, note = library_classes('mmdet', 'CityscapesDataset')
    parts: list[Part] = []
    for name, count in counts.items():
        images = root / 'leftImg8bit' / name
        parts.append(
            SegmentationPart(
                name=f'{name} (semantic)',
                image_dir=images,
                label_dir=root / 'gtFine' / name,
                num_classes=CITYSCAPES_CLASSES,
                mending=mending,
                num_images=count,
            )
        )
        parts.append(
            DetectionPart(
                name=f'{name} (instances)',
                image_dir=images,
                ann_file=root / 'annotations' / f'instancesonly_filtered_gtFine_{name}.json',
                mending=mending,
                classes=classes,
                classes_note=note,
                num_images=count,
                instance_maps=name == 'val',
            )
        )
    return parts


def _imagenet(root: Path, demo: tuple[Path, dict] | None) -> list[Part]:
    return [
        ClassificationPart(
            name=name,
            image_dir=root / name,
            mending=demo_mending(*demo) if demo else imagenet_mending(root, name),
            ann_file=None if demo else listed_labels(root, name),
            num_classes=len(DEMO_CLASSES) if demo else IMAGENET_CLASSES,
            classes=DEMO_CLASSES if demo else None,
            num_images=None if demo else count,
            may_be_empty=bool(demo),
            wordnet_order=not demo,
        )
        for name, count in IMAGENET_IMAGES.items()
    ]


def listed_labels(root: Path, name: str) -> Path | None:
    """Returns the list of labels that MMPretrain's ImageNet class reads where there is one."""
    path = root / 'meta' / f'{name}.txt'
    return path if path.exists() else None


def demo_counts(settings: dict) -> dict[str, int]:
    """Returns the number of images in the parts of the demo data."""
    return {'train': settings.get('num_train'), 'val': settings.get('num_val')}
