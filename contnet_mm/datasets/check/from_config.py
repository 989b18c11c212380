"""What the data loaders of a config will read."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config

from contnet_mm.apis.config import datasets_of
from contnet_mm.utils.errors import first_line

from .classification import ClassificationPart
from .detection import DetectionPart
from .fixes import NUM_IMAGES, find_demo, find_origin
from .heads import find_heads
from .parts import IMAGE_SUFFIXES, Part
from .segmentation import SegmentationPart

LOADERS = ('train', 'val', 'test')
CITYSCAPES_CLASSES = 19
IMAGENET_CLASSES = 1000
# Published annotation files: how their names begin, before the name of the part.
COCO_FILES = {'instances': 'coco', 'instancesonly_filtered_gtFine': 'cityscapes'}


def parts_of_config(config: Config) -> list[Part]:
    """Return what the data loaders of a config expect; equal ones are named once.

    Paths are taken from where the command runs, as a training takes them.

    Args:
        config: A config of MMDetection, MMSegmentation or MMPretrain.

    Raises:
        ValueError: If there is no data loader, or one reads what cannot be checked here.
    """
    loaders: dict[Part, list[str]] = {}  # by what they read
    for loader in LOADERS:
        evaluators = config.get(f'{loader}_evaluator') or []
        evaluators = [evaluators] if isinstance(evaluators, dict) else evaluators
        for dataset in datasets_of(config, loader):
            part = make_part(loader, dataset, config.get('default_scope'), evaluators)
            loaders.setdefault(replace(part, name=''), []).append(loader)
    if not loaders:
        names = ', '.join(f'{loader}_dataloader' for loader in LOADERS)
        raise ValueError(f'the config has none of {names}: give one that trains or tests')
    heads = tuple(find_heads(config).items())
    lists = {(part.image_dir, part.ann_file) for part in loaders if part.ann_file}
    return [
        replace(
            part,
            name=', '.join(names),
            heads=heads,
            others=tuple(
                path
                for folder, path in sorted(lists)
                if folder == part.image_dir and path != part.ann_file
            ),
        )
        for part, names in loaders.items()
    ]


def make_part(
    loader: str, dataset: dict, scope: str | None = None, evaluators: Sequence[dict] = ()
) -> Part:
    """Return what a data set of a config expects.

    Args:
        loader: The part, such as 'train'.
        dataset: The config of the data set.
        scope: The library whose data set it is, unless its type says so.
        evaluators: The configs of the evaluators that go with it.

    Raises:
        ValueError: If the data set is of a kind, or in a place, that cannot be checked here.
    """
    library, name = _library_and_name(dataset.get('type'), scope)
    if (library, name) not in MAKERS:
        allowed = ', '.join('.'.join(kind) for kind in MAKERS)
        raise ValueError(
            f'{loader}_dataloader has a data set of type {library}.{name}, which cannot be '
            f'checked; these can: {allowed}; leave it out by '
            f'--cfg-options {loader}_dataloader=None'
        )
    for value in (dataset.get('data_root'), dataset.get('ann_file')):
        if '://' in str(value or ''):
            raise ValueError(f'{value} is no folder on this machine; only those can be checked')
    return MAKERS[library, name](loader, name, dataset, evaluators)


def _library_and_name(kind: object, scope: str | None) -> tuple[str, str]:
    """Return the library and the name of a data set's class."""
    if isinstance(kind, type):  # configs in MMEngine's newer, pure Python style
        return kind.__module__.split('.')[0], kind.__name__
    library, _, name = str(kind).rpartition('.')
    return library.split('.')[0] or str(scope), name


def _detection(loader: str, name: str, dataset: dict, evaluators: Sequence[dict]) -> DetectionPart:
    root, prefix, own = _root_prefix_classes(dataset)
    image_dir = _join(root, prefix.get('img', prefix.get('img_path', '')))
    ann_file = _join(root, dataset.get('ann_file', ''))
    classes, note = (own, '') if own else _library_classes(name)
    begin, _, part = ann_file.stem.rpartition('_')
    kind = None if own else COCO_FILES.get(begin)
    kind = kind if kind and part in NUM_IMAGES[kind] else None
    fix, count = find_origin(kind, root, part, image_dir, ann_file)
    metrics = [Path(e['ann_file']) for e in evaluators if e.get('ann_file')]
    return DetectionPart(
        name=loader,
        image_dir=image_dir,
        ann_file=ann_file,
        fix=fix,
        classes=classes,
        classes_note=note,
        num_images=count,
        masks=any(step.get('with_mask') for step in dataset.get('pipeline') or []),
        # COCO's test images have no annotations.
        labelled=not ann_file.name.startswith('image_info'),
        instance_maps=any(str(e.get('type')).endswith('CityScapesMetric') for e in evaluators),
        metric_ann_file=next(iter(metrics), None),
    )


def _segmentation(
    loader: str, name: str, dataset: dict, evaluators: Sequence[dict]
) -> SegmentationPart:
    root, prefix, own = _root_prefix_classes(dataset)
    image_dir = _join(root, prefix.get('img_path', ''))
    label_dir = _join(root, prefix.get('seg_map_path', ''))
    is_cityscapes = name == 'CityscapesDataset'
    num_classes = CITYSCAPES_CLASSES if is_cityscapes else len(own) if own else None
    kind = 'cityscapes' if is_cityscapes else None
    fix, count = find_origin(kind, root, image_dir.name, image_dir, label_dir)
    ends = ('_leftImg8bit.png', '_gtFine_labelTrainIds.png') if is_cityscapes else ('.jpg', '.png')
    ann_file = dataset.get('ann_file')
    return SegmentationPart(
        name=loader,
        image_dir=image_dir,
        label_dir=label_dir,
        num_classes=num_classes,
        fix=fix,
        image_suffix=dataset.get('img_suffix', ends[0]),
        label_suffix=dataset.get('seg_map_suffix', ends[1]),
        num_images=None if ann_file else count,
        ann_file=_join(root, ann_file) if ann_file else None,
        ignored=dataset.get('ignore_index', 255),
        reduce_zero_label=dataset.get('reduce_zero_label', False),
    )


def _classification(
    loader: str, name: str, dataset: dict, evaluators: Sequence[dict]
) -> ClassificationPart:
    split = dataset.get('split', '')
    if split == 'test' or dataset.get('with_label') is False:
        raise ValueError(
            f'{loader}_dataloader reads images without labels, which cannot be checked: leave '
            f'it out by --cfg-options {loader}_dataloader=None'
        )
    root, prefix, own = _root_prefix_classes(dataset)
    image_dir = _join(root, prefix.get('img_path') or split)
    ann_file = _join(root, dataset['ann_file']) if dataset.get('ann_file') else None
    listed = root / 'meta' / f'{split}.txt'
    if ann_file is None and split and listed.exists():  # as MMPretrain's ImageNet looks for it
        ann_file = listed
    published = name == 'ImageNet' and not own and split in NUM_IMAGES['imagenet']
    kind = 'imagenet' if published else None
    fix, count = find_origin(kind, root, split, image_dir, ann_file)
    is_demo = find_demo(root) is not None
    return ClassificationPart(
        name=loader,
        image_dir=image_dir,
        fix=fix,
        ann_file=ann_file,
        num_classes=len(own) if own else IMAGENET_CLASSES if published else None,
        classes=own,
        num_images=None if is_demo else count,  # which counts pictures, not crops
        suffixes=tuple(end.lower() for end in dataset.get('extensions', IMAGE_SUFFIXES)),
        may_be_empty=is_demo,
        wordnet_order=published and not is_demo,
    )


MAKERS: dict[tuple[str, str], Callable[[str, str, dict, Sequence[dict]], Part]] = {
    ('mmdet', 'CocoDataset'): _detection,
    ('mmdet', 'CityscapesDataset'): _detection,
    ('mmseg', 'BaseSegDataset'): _segmentation,
    ('mmseg', 'CityscapesDataset'): _segmentation,
    ('mmpretrain', 'CustomDataset'): _classification,
    ('mmpretrain', 'ImageNet'): _classification,
}


def _root_prefix_classes(dataset: dict) -> tuple[Path, dict, tuple[str, ...] | None]:
    """Return the root folder, the folders in it by what they hold, and the config's classes."""
    prefix = dataset.get('data_prefix') or {}
    prefix = {'img_path': prefix} if isinstance(prefix, str) else prefix
    classes = dataset.get('classes') or (dataset.get('metainfo') or {}).get('classes')
    if isinstance(classes, str):  # MMPretrain takes a file of names, too
        classes = Path(classes).read_text().splitlines()
    root = Path(dataset.get('data_root') or '').expanduser()
    return root, prefix, tuple(classes) if classes else None


def _join(root: Path, path: str) -> Path:
    return root / os.path.expanduser(path)


def _library_classes(name: str) -> tuple[tuple[str, ...] | None, str]:
    """Return the class names of MMDetection's data set and '', or None and why not."""
    try:
        datasets = importlib.import_module('mmdet.datasets')
        return tuple(getattr(datasets, name).METAINFO['classes']), ''
    except Exception as error:  # a library that does not fit its neighbours fails in any way
        return None, f'mmdet does not import here ({first_line(error)})'
