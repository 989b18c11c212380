"""A config that inherits a base and trains on data of one's own."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from contnet_mm.apis.config import datasets_of
from contnet_mm.swap.edit import KeyPath, Swap, SwapError, walk
from contnet_mm.swap.sandbox import sandbox
from contnet_mm.swap.task import kind_of, library_of, type_name

from .classes import make_palette, set_classes
from .data import OwnData, Part
from .recipe import set_recipe, set_weights
from .size import PIPELINES, set_size

# What stays of the base's data sets.
KEPT = (
    'filter_cfg',
    'test_mode',
    'pipeline',
    'backend_args',
    'ignore_index',
    'extensions',
    '_scope_',
)
WHY_DATA = 'Own data.'


@dataclass(frozen=True)
class Options:
    """What a person may choose.

    Args:
        size: Height and width in pixels to train and test with; None: the base's.
        batch_size: Images per step; None: by the number of images.
        epochs: Passes over the images; None: by the number of images.
        weights: File to start from; None: from scratch.
    """

    size: tuple[int, int] | None = None
    batch_size: int | None = None
    epochs: int | None = None
    weights: Path | None = None


def plan_config(
    base: Config,
    data: OwnData,
    chosen: dict[str, Part],
    settings: dict[str, dict],
    options: Options,
) -> Swap:
    """Change a copy of a config so that it trains on data of one's own.

    Args:
        base: The config.
        data: What was read.
        chosen: The parts by 'train', 'val' and 'test'.
        settings: What ``write_parts`` returned for them.
        options: What a person chose.

    Raises:
        SwapError: If its data sets are wrapped in what mixes several.
        ValueError: If the weights cannot be read.
    """
    swap = Swap(copy.deepcopy(base))
    with sandbox(library_of(base)):
        set_classes(swap, data.classes)
    palette = data.palette or make_palette(len(data.classes))
    metainfo = dict(classes=data.classes, palette=list(palette))
    swap.set(('metainfo',), metainfo, 'Names, and colours to draw in.')
    for role in settings:
        _set_dataset(swap, role, {**settings[role], 'metainfo': metainfo})
        if library_of(base) == 'mmdet' and role != 'train':
            _set_metric(swap, (f'{role}_evaluator',), settings[role]['ann_file'])
    _count_zero(swap)
    if options.size:
        set_size(swap, options.size)
    _share_pipelines(swap)
    with sandbox(library_of(base)):
        set_weights(swap, options.weights)
        from_scratch = options.weights is None
        number = len(chosen['train'].samples)
        set_recipe(swap, number, from_scratch, options.batch_size, options.epochs)
    return swap


def check_task(base: Config, data: OwnData) -> None:
    """Raise SwapError where a config needs masks that the data has not."""
    if kind_of(base) == 'instance segmentation' and not data.has_masks:
        raise SwapError(
            f'it predicts masks, and the data ({data.layout}) has boxes alone: take a detector, '
            'such as retinanet_contnet-ti_fpn_1x_coco'
        )


def _set_metric(swap: Swap, path: KeyPath, ann_file: str) -> None:
    """Let COCO's metric read an annotation file, in place of whatever metrics there are."""
    kind = kind_of(swap.config)
    if type_name(swap.get(path)) != 'CocoMetric':  # several, of Cityscapes
        metric = ['bbox', 'segm'] if kind == 'instance segmentation' else 'bbox'
        swap.set(path, dict(type='CocoMetric', metric=metric), WHY_DATA)
    swap.set((*path, 'ann_file'), ann_file, WHY_DATA)
    swap.set((*path, 'classwise'), True, 'AP of each class, too.')


def _count_zero(swap: Swap) -> None:
    """Take label 0 for a class, which it is not in ADE20K."""
    for path, step in list(walk(swap.config)):
        if step.get('reduce_zero_label'):
            swap.set((*path, 'reduce_zero_label'), False, 'Label 0 is a class.')


def _share_pipelines(swap: Swap) -> None:
    """Let the base's variables hold the pipelines, so that the new config can name them."""
    for role, name in (('train', PIPELINES[0]), ('val', PIPELINES[1])):
        pipeline = datasets_of(swap.config, role)[0].get('pipeline')
        library = library_of(swap.config)
        # MMEngine notes the library of each step of a variable, of which its own needs none.
        if pipeline and _without_scope(swap.config.get(name), library) == pipeline:
            swap.config[name] = copy.deepcopy(pipeline)


def _without_scope(value: object, library: str) -> object:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if (k, v) != ('_scope_', library)}
        return {key: _without_scope(item, library) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_scope(item, library) for item in value)
    return value


def _set_dataset(swap: Swap, role: str, settings: dict) -> None:
    """Put a data set in place of the one that a data loader of the base reads."""
    loader = f'{role}_dataloader'
    found = datasets_of(swap.config, role)
    if not found:
        raise SwapError(f'it has no data set in {loader}')
    old = found[0]
    new = {**settings, 'data_root': '', **{key: old[key] for key in KEPT if key in old}}
    if settings['type'] != 'CustomDataset':
        new['test_mode'] = role != 'train'
    path = (loader, 'dataset')
    # What repeats or joins the data of the base gives way, what mixes images stays.
    while type_name(swap.get(path)) not in ('RepeatDataset', 'ConcatDataset'):
        if 'dataset' not in swap.get(path):
            break
        path = (*path, 'dataset')
    swap.set(path, new, WHY_DATA)
