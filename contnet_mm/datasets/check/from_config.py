"""What the data loaders of a config will read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config

from contnet_mm.apis.config import datasets_of

from .fixes import (
    Mending,
    cityscapes_mending,
    coco_mending,
    demo_mending,
    demo_settings,
    imagenet_mending,
    own_mending,
)
from .library import library_classes
from .parts import IMAGE_SUFFIXES, ClassificationPart, DetectionPart, Part, SegmentationPart
from .published import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_IMAGES,
    COCO_IMAGES,
    IMAGENET_CLASSES,
    IMAGENET_IMAGES,
    demo_counts,
    listed_labels,
)

LOADERS = ('train', 'val', 'test')


def parts_of_config(config: Config) -> list[Part]:
    """Says what the data loaders of a config expect; equal ones are named once.

    Paths are taken from where the command runs, as a training takes them.

    Args:
        config: A config of MMDetection, MMSegmentation or MMPretrain.

    Raises:
        ValueError: If there is no data loader, or one reads what cannot be checked here.
    """
    parts: list[Part] = []
    for loader in LOADERS:
        for dataset in datasets_of(config, loader):
            part = _make_part(config, loader, dataset)
            equal = [i for i, other in enumerate(parts) if replace(other, name=loader) == part]
            if equal:
                parts[equal[0]] = replace(parts[equal[0]], name=f'{parts[equal[0]].name}, {loader}')
            else:
                parts.append(part)
    if not parts:
        names = ', '.join(f'{loader}_dataloader' for loader in LOADERS)
        raise ValueError(f'the config has none of {names}: give one that trains or tests')
    return parts


def _make_part(config: Config, loader: str, dataset: dict) -> Part:
    kind = _kind(config, dataset)
    if kind not in MAKERS:
        allowed = ', '.join('.'.join(name) for name in MAKERS)
        raise ValueError(
            f'{loader}_dataloader has a data set of type {".".join(kind)}, which cannot be '
            f'checked; these can: {allowed}; leave it out by '
            f'--cfg-options {loader}_dataloader=None'
        )
    for value in (dataset.get('data_root'), dataset.get('ann_file')):
        if '://' in str(value or ''):
            raise ValueError(f'{value} is no folder on this machine; only those can be checked')
    return MAKERS[kind](config, loader, dataset)


def _kind(config: Config, dataset: dict) -> tuple[str, str]:
    """Returns the library and the name of a data set's class."""
    kind = dataset.get('type')
    if isinstance(kind, type):  # configs in MMEngine's newer, pure Python style
        return kind.__module__.split('.')[0], kind.__name__
    parts = str(kind).split('.')
    return (parts[0] if len(parts) > 1 else str(config.get('default_scope'))), parts[-1]


def _detection(config: Config, loader: str, dataset: dict) -> DetectionPart:
    root = _root(dataset)
    prefix = dataset.get('data_prefix') or {}
    image_dir = _join(root, prefix.get('img', prefix.get('img_path', '')))
    ann_file = _join(root, dataset.get('ann_file', ''))
    own = (dataset.get('metainfo') or {}).get('classes')
    _, name = _kind(config, dataset)
    classes, note = (tuple(own), '') if own else library_classes('mmdet', name)
    mending, count = _origin_of_coco_file(root, image_dir, ann_file, own)
    evaluators = _evaluators(config, loader)
    metric = next((e['ann_file'] for e in evaluators if e.get('ann_file')), None)
    return DetectionPart(
        name=loader,
        image_dir=image_dir,
        ann_file=ann_file,
        mending=mending,
        classes=classes,
        classes_note=note,
        num_images=count,
        masks=any(step.get('with_mask') for step in dataset.get('pipeline') or []),
        # COCO's test images have no annotations.
        labelled=not ann_file.name.startswith('image_info'),
        instance_maps=any(str(e.get('type')).endswith('CityScapesMetric') for e in evaluators),
        metric_ann_file=Path(metric) if metric else None,
    )


def _origin_of_coco_file(
    root: Path, image_dir: Path, ann_file: Path, own_classes: object
) -> tuple[Mending, int | None]:
    """Returns commands and the number of images, by the name of the annotation file."""
    part = ann_file.stem.split('_')[-1]
    demo = demo_settings(root)
    if demo:
        return demo_mending(*demo), demo_counts(demo[1]).get(part)
    if not own_classes and ann_file.stem == f'instances_{part}' and part in COCO_IMAGES:
        return coco_mending(root, part), COCO_IMAGES[part]
    cityscapes = f'instancesonly_filtered_gtFine_{part}'
    if not own_classes and ann_file.stem == cityscapes and part in CITYSCAPES_IMAGES:
        return cityscapes_mending(root), CITYSCAPES_IMAGES[part]
    return own_mending(image_dir, ann_file), None


def _segmentation(config: Config, loader: str, dataset: dict) -> SegmentationPart:
    root = _root(dataset)
    prefix = dataset.get('data_prefix') or {}
    image_dir = _join(root, prefix.get('img_path', ''))
    label_dir = _join(root, prefix.get('seg_map_path', ''))
    cityscapes = _kind(config, dataset)[1] == 'CityscapesDataset'
    own = (dataset.get('metainfo') or {}).get('classes')
    num_classes = CITYSCAPES_CLASSES if cityscapes else len(own) if own else None
    if num_classes and dataset.get('reduce_zero_label'):
        num_classes += 1  # 0 is ignored, and the classes start at 1
    part = image_dir.name
    demo = demo_settings(root)
    mending, count = own_mending(image_dir, label_dir), None
    if demo:
        mending, count = demo_mending(*demo), demo_counts(demo[1]).get(part)
    elif cityscapes:
        mending, count = cityscapes_mending(root), CITYSCAPES_IMAGES.get(part)
    ends = ('_leftImg8bit.png', '_gtFine_labelTrainIds.png') if cityscapes else ('.jpg', '.png')
    return SegmentationPart(
        name=loader,
        image_dir=image_dir,
        label_dir=label_dir,
        num_classes=num_classes,
        mending=mending,
        image_suffix=dataset.get('img_suffix', ends[0]),
        label_suffix=dataset.get('seg_map_suffix', ends[1]),
        num_images=None if dataset.get('ann_file') else count,
        ann_file=_join(root, dataset['ann_file']) if dataset.get('ann_file') else None,
        ignored=dataset.get('ignore_index', 255),
    )


def _classification(config: Config, loader: str, dataset: dict) -> ClassificationPart:
    root = _root(dataset)
    prefix = dataset.get('data_prefix') or ''
    prefix = prefix if isinstance(prefix, str) else prefix.get('img_path', '')
    split = dataset.get('split', '')
    if split == 'test' or dataset.get('with_label') is False:
        raise ValueError(
            f'{loader}_dataloader reads images without labels, which cannot be checked: leave '
            f'it out by --cfg-options {loader}_dataloader=None'
        )
    image_dir = _join(root, prefix or split)
    listed = _join(root, dataset['ann_file']) if dataset.get('ann_file') else None
    if listed is None and split:
        listed = listed_labels(root, split)
    own = dataset.get('classes') or (dataset.get('metainfo') or {}).get('classes')
    if isinstance(own, str):
        own = Path(own).read_text().splitlines()
    published = _kind(config, dataset)[1] == 'ImageNet' and not own and split in IMAGENET_IMAGES
    demo = demo_settings(root)
    mending = own_mending(image_dir, listed)
    if demo:
        mending = demo_mending(*demo)
    elif published:
        mending = imagenet_mending(root, split)
    return ClassificationPart(
        name=loader,
        image_dir=image_dir,
        mending=mending,
        ann_file=listed,
        num_classes=len(own) if own else IMAGENET_CLASSES if published else None,
        classes=tuple(own) if own else None,
        num_images=IMAGENET_IMAGES[split] if published and not demo else None,
        suffixes=tuple(end.lower() for end in dataset.get('extensions', IMAGE_SUFFIXES)),
        may_be_empty=bool(demo),
        wordnet_order=published and not demo,
    )


MAKERS: dict[tuple[str, str], Callable[[Config, str, dict], Part]] = {
    ('mmdet', 'CocoDataset'): _detection,
    ('mmdet', 'CityscapesDataset'): _detection,
    ('mmseg', 'BaseSegDataset'): _segmentation,
    ('mmseg', 'CityscapesDataset'): _segmentation,
    ('mmpretrain', 'CustomDataset'): _classification,
    ('mmpretrain', 'ImageNet'): _classification,
}


def _evaluators(config: Config, loader: str) -> list[dict]:
    evaluator = config.get(f'{loader}_evaluator') or []
    return [evaluator] if isinstance(evaluator, dict) else list(evaluator)


def _root(dataset: dict) -> Path:
    return Path(os.path.expanduser(dataset.get('data_root') or ''))


def _join(root: Path, path: str) -> Path:
    return root / os.path.expanduser(path)
