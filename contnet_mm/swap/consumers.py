"""Necks and heads: the channels that they read, set to what ConTNet gives.

Every rule compares what a config says with what the old backbone or neck was measured to give,
and refuses where the two do not agree: then the number means something else.
"""

from __future__ import annotations

import torch

from contnet_mm.swap.edit import KeyPath, Swap, SwapError, dotted
from contnet_mm.swap.features import FeatureShapes, build, run
from contnet_mm.swap.task import type_name

CHANNELS = 'in_channels'
# In front of a head that takes a vector, where the old backbone made one.
POOLING = dict(type='GlobalAveragePooling')
# Heads without parameters, of classifiers whose backbone ends in the scores; what takes over.
SCORING = {'ClsHead': 'LinearClsHead', 'MultiLabelClsHead': 'MultiLabelLinearClsHead'}
# Parts that work with one backbone alone.
METHODS = {
    'RFP': 'runs copies of the backbone on its own maps, which only DetectoRS_ResNet takes',
    'TridentRoIHead': 'reads the three branches that only TridentResNet has',
}
NOT_HEADS = ('backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg')


def list_parts(swap: Swap, path: KeyPath) -> list[KeyPath]:
    """Return the path of a part, or of each in a list of parts; none where there is nothing."""
    value = swap.get(path)
    if isinstance(value, (list, tuple)):
        return [(*path, index) for index in range(len(value))]
    return [path] if value else []


def map_channels(value: object, shapes: FeatureShapes, index: object = None) -> object:
    """Return the channels that a part reads now, in place of those that it read before.

    Args:
        value: A number, or a list with one for each map.
        shapes: What the part reads.
        index: Which of the maps, as ``in_index`` of MMSegmentation says; None where a config does
            not say it: a number is then that of the last map, and a list starts with the first
            map, or ends with the last, or goes through all backwards.

    Raises:
        SwapError: If the value is not what was measured.
    """
    old, new = ([f.channels for f in features] for features in (shapes.old, shapes.new))
    is_list = isinstance(value, (list, tuple))
    values, every = list(value) if is_list else [value], range(len(old))
    if index is not None:
        orders = [index if is_list else [index]]
    elif is_list:
        orders = [every[-len(values) :], every[: len(values)], every[::-1]]
    else:
        orders = [[-1]]
    for order in orders:
        try:
            if [old[i] for i in order] == values:
                found = [new[i] for i in order]
                return type(value)(found) if is_list else found[0]
        except (IndexError, TypeError):  # there is no such map
            continue
    at = '' if index is None else f' at in_index {index}'
    raise SwapError(f'{value}{at} is not what comes before it, maps of {old} channels')


def fix_channels(
    swap: Swap, path: KeyPath, shapes: FeatureShapes, key: str = CHANNELS, index: object = None
) -> None:
    """Set the channels that a part reads; see :func:`map_channels`."""
    path = (*path, key)
    try:
        new = map_channels(swap.get(path), shapes, index)
    except SwapError as error:
        raise SwapError(f'{dotted(path)} = {error}') from error
    swap.set(path, new, 'The channels of the maps that it reads.')


def check_method(swap: Swap, root: KeyPath) -> None:
    """Raise SwapError for a model whose method is in its backbone."""
    for path in [*list_parts(swap, (*root, 'neck')), (*root, 'roi_head')]:
        name = type_name(swap.get(path))
        if name in METHODS:
            raise SwapError(f'{name} {METHODS[name]}')


def fix_necks(swap: Swap, root: KeyPath, shapes: FeatureShapes) -> FeatureShapes:
    """Fix what follows the backbone, one after the other; return what the heads read."""
    for path in list_parts(swap, (*root, 'neck')):
        cfg = swap.get(path)
        old_neck = build(cfg)
        for key in (CHANNELS, 'input_features') if shapes.old != shapes.new else ():
            if key in cfg:
                inputs = cfg[key]
                fix_channels(swap, path, shapes, key)
                if type_name(cfg) == 'SSDNeck':  # lists its inputs as its first outputs
                    outputs = cfg['out_channels']
                    new = type(outputs)([*cfg[key], *outputs[len(inputs) :]])
                    swap.set((*path, 'out_channels'), new, 'It hands the maps on.')
        old_maps = run(old_neck, tuple(shapes.old_maps))
        new_maps = run(build(swap.get(path)), tuple(shapes.new_maps))
        shapes = FeatureShapes(old_maps, new_maps, shapes.size)
    return shapes


def fix_heads(swap: Swap, root: KeyPath, shapes: FeatureShapes, shared_head: dict) -> None:
    """Fix the heads of a detector or segmentor, where they read other channels than before.

    ``shared_head`` is the config of what takes the place of a ResNet's stage in a RoI head.
    """
    if shapes.old == shapes.new:
        return
    for key in [key for key in swap.get(root) if key not in NOT_HEADS]:
        for path in list_parts(swap, (*root, key)):
            if key == 'roi_head':
                _fix_roi_head(swap, path, shapes, shared_head)
            elif isinstance(swap.get(path), dict):
                _fix_head(swap, path, shapes)


def _fix_head(swap: Swap, path: KeyPath, shapes: FeatureShapes) -> None:
    head = swap.get(path)
    if CHANNELS in head:
        fix_channels(swap, path, shapes, index=head.get('in_index'))
    if head.get('c1_in_channels'):  # of DeepLabV3+, which reads the first map besides
        fix_channels(swap, path, shapes, 'c1_in_channels', index=0)
    for key, inner in head.items():
        if isinstance(inner, dict) and 'in_index' in inner:
            _fix_head(swap, (*path, key), shapes)


def _fix_roi_head(swap: Swap, path: KeyPath, shapes: FeatureShapes, shared: dict) -> None:
    """Fix what cuts crops out of the maps, and what reads the crops."""
    old, new = shapes.old[-1].channels, shapes.new[-1].channels
    for key in ('bbox_roi_extractor', 'mask_roi_extractor'):
        extractor = swap.get((*path, key))
        if not extractor:
            continue
        if extractor['out_channels'] != old or len(shapes.old) != 1:
            raise SwapError(
                f'{key}.out_channels = {extractor["out_channels"]} is not what comes before '
                f'it, maps of {[f.channels for f in shapes.old]} channels'
            )
        swap.set((*path, key, 'out_channels'), new, 'The channels of the map.')
    layer = swap.get((*path, 'shared_head'))
    if layer:
        if type_name(layer) != 'ResLayer':
            raise SwapError(
                f'its shared head {type_name(layer)} is no ResNet stage, and what stands in for '
                'it with ConTNet is not known'
            )
        swap.set((*path, 'shared_head'), shared, "ConTNet's last stage in place of a ResNet's.")
        old, new = (
            run(build(cfg), torch.zeros(1, channels, 14, 14))[-1].shape[1]
            for cfg, channels in ((layer, old), (shared, new))
        )
    for head in (*list_parts(swap, (*path, 'bbox_head')), *list_parts(swap, (*path, 'mask_head'))):
        if swap.get((*head, CHANNELS)) == old:
            swap.set((*head, CHANNELS), new, 'The channels of the crops.')


def fix_classifier(swap: Swap, root: KeyPath, shapes: FeatureShapes, old_cfg: dict) -> None:
    """Average the map where the old backbone did so itself, and fix neck and head.

    ``old_cfg`` is the config of the old backbone.
    """
    name = type_name(old_cfg)
    pools = not shapes.old[-1].stride and shapes.new[-1].stride
    if pools:
        vectors = [x.mean((2, 3)) for x in shapes.new_maps]
        shapes = FeatureShapes(shapes.old_maps, vectors, shapes.size)
    shapes = fix_necks(swap, root, shapes)
    old, new = shapes.old[-1].channels, shapes.new[-1].channels
    if pools:
        necks = swap.get((*root, 'neck'))
        if necks is not None:
            necks = [dict(POOLING), *(necks if isinstance(necks, list) else [necks])]
        swap.set((*root, 'neck'), necks or dict(POOLING), f'{name} averages its last map itself.')
    path = (*root, 'head')
    head = swap.get(path) or {}
    if CHANNELS in head:
        fix_channels(swap, path, shapes)
    elif type_name(head) in SCORING and old_cfg.get('num_classes') == old:
        added = dict(type=SCORING[type_name(head)], num_classes=old, in_channels=new)
        for key, value in added.items():
            swap.set((*path, key), value, f'The scores that {name} gave itself.')
    elif head and shapes.old != shapes.new:
        raise SwapError(
            f'its head {type_name(head)} does not say how many channels it reads, and those of '
            f'{name} are {old}'
        )
