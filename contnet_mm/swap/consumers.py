"""Necks and heads: the channels that they read, mended to what ConTNet gives.

Every rule compares what a config says with what the old backbone or neck was measured to give,
and refuses where the two do not agree: then the number means something else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from contnet_mm.swap.changes import SwapError
from contnet_mm.swap.edit import Editor, Path
from contnet_mm.swap.features import Feature, build, measure, run
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
NOT_HEADS = ('backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg', 'type')


class Stream:
    """What flows from the backbone on: before the swap and after it, part for part.

    Args:
        old: Outputs of the old backbone.
        new: Outputs of ConTNet.
        size: Side of the image in pixels.
    """

    def __init__(self, old: Sequence, new: Sequence, size: int) -> None:
        self.old, self.new, self.size = list(old), list(new), size

    @property
    def was(self) -> list[Feature]:
        """What came before the swap."""
        return measure(self.old, self.size)

    @property
    def now(self) -> list[Feature]:
        """What comes now."""
        return measure(self.new, self.size)

    def check_strides(self) -> None:
        """Raise SwapError where a map has another size than before: anchors would not fit it."""
        was, now = ([f.height for f in features] for features in (self.was, self.now))
        if was != now:
            raise SwapError(
                f'for an image of {self.size}x{self.size} the maps had {was} rows, and with '
                f'ConTNet they have {now}: what reads them expects the strides from before'
            )


def translate(value: object, stream: Stream, index: object = None) -> object:
    """Return the channels that a part reads now, in place of those that it read before.

    Args:
        value: A number, or a list with one for each map.
        stream: What the part reads.
        index: Which of the maps, as ``in_index`` of MMSegmentation says; None where a config does
            not say it: a number is then that of the last map, and a list starts with the first
            map, or ends with the last, or goes through all backwards.

    Raises:
        SwapError: If the value is not what was measured.
    """
    was, now = ([f.channels for f in features] for features in (stream.was, stream.now))
    if isinstance(value, int):
        place = -1 if index is None else index
        if isinstance(place, int) and -len(was) <= place < len(was) and was[place] == value:
            return now[place]
    elif isinstance(value, (list, tuple)):
        orders = [range(len(was))[-len(value) :], range(len(value)), range(len(was))[::-1]]
        if index is not None:
            orders = [list(index) if isinstance(index, (list, tuple)) else []]
        for places in orders:
            fits = len(places) == len(value) and all(-len(was) <= p < len(was) for p in places)
            if fits and [was[p] for p in places] == list(value):
                return type(value)(now[p] for p in places)
    at = '' if index is None else f' at in_index {index}'
    raise SwapError(f'{value}{at} is not what comes before it, maps of {was} channels')


def mend(
    editor: Editor, path: Path, stream: Stream, key: str = CHANNELS, index: object = None
) -> None:
    """Mend one number or list of channels."""
    value = editor.get((*path, key))
    try:
        new = translate(value, stream, index)
    except SwapError as error:
        raise SwapError(f'{".".join(map(str, path))}.{key} = {error}') from error
    editor.set((*path, key), new, 'The channels of the maps that it reads.')


def check_method(model: dict) -> None:
    """Raise SwapError for a model whose method is in its backbone."""
    necks = model.get('neck')
    for part in [*(necks if isinstance(necks, (list, tuple)) else [necks]), model.get('roi_head')]:
        reason = part and METHODS.get(type_name(part))
        if reason:
            raise SwapError(f'{type_name(part)} {reason}')


def mend_necks(editor: Editor, root: Path, stream: Stream) -> Stream:
    """Mend what follows the backbone, one after the other; return what the heads read."""
    necks = editor.get((*root, 'neck'))
    if necks is None:
        return stream
    places = range(len(necks)) if isinstance(necks, (list, tuple)) else [None]
    for place in places:
        path = (*root, 'neck') if place is None else (*root, 'neck', place)
        cfg = editor.get(path)
        old_neck = build(cfg)
        if stream.was != stream.now:
            _mend_neck(editor, path, stream)
        old = run(old_neck, tuple(stream.old))
        new = run(build(editor.get(path)), tuple(stream.new))
        stream = Stream(old, new, stream.size)
    return stream


def _mend_neck(editor: Editor, path: Path, stream: Stream) -> None:
    cfg = editor.get(path)
    for key in (CHANNELS, 'input_features'):
        if key in cfg:
            inputs = cfg[key]
            mend(editor, path, stream, key)
            if type_name(cfg) == 'SSDNeck':  # it hands its inputs on, and lists them as outputs
                outputs = cfg['out_channels']
                new = type(outputs)([*cfg[key], *outputs[len(inputs) :]])
                editor.set((*path, 'out_channels'), new, 'It hands the maps on.')


def mend_detector(editor: Editor, root: Path, stream: Stream, shared: dict) -> None:
    """Mend the heads of a detector that reads maps of other channels than before."""
    if stream.was == stream.now:
        return
    for key, head in editor.get(root).items():
        if key in NOT_HEADS or not isinstance(head, dict):
            continue
        if key == 'roi_head':
            _mend_roi_head(editor, (*root, key), stream, shared)
        elif CHANNELS in head:
            mend(editor, (*root, key), stream)


def _mend_roi_head(editor: Editor, path: Path, stream: Stream, shared: dict) -> None:
    """Mend what cuts crops out of the maps, and what reads the crops.

    ``shared`` is the config of what stands in for a ResNet's stage.
    """
    head, last = editor.get(path), (stream.was[-1].channels, stream.now[-1].channels)
    for key in ('bbox_roi_extractor', 'mask_roi_extractor'):
        if head.get(key):
            extractor = head[key]
            if extractor['out_channels'] != last[0] or len(stream.was) != 1:
                raise SwapError(
                    f'{key}.out_channels = {extractor["out_channels"]} is not what comes before '
                    f'it, maps of {[f.channels for f in stream.was]} channels'
                )
            editor.set((*path, key, 'out_channels'), last[1], 'The channels of the map.')
    if head.get('shared_head'):
        if type_name(head['shared_head']) != 'ResLayer':
            raise SwapError(
                f'its shared head {type_name(head["shared_head"])} is no ResNet stage, and what '
                'stands in for it with ConTNet is not known'
            )
        old_layer = build(head['shared_head'])
        new_layer = build(shared)
        editor.set((*path, 'shared_head'), shared, "ConTNet's last stage in place of a ResNet's.")
        editor.judge(
            'the shared head starts with the convolution that ends stage 3 of ConTNet, without '
            'the shortcut beside it, which needs what the map no longer holds'
        )
        was = channels_of_crops(old_layer, last[0])
        now = channels_of_crops(new_layer, last[1])
        last = (was, now)
    for key in ('bbox_head', 'mask_head'):
        heads = head.get(key)
        places = range(len(heads)) if isinstance(heads, (list, tuple)) else [()]
        for place in places if heads else ():
            at = (*path, key) if place == () else (*path, key, place)
            if editor.get((*at, CHANNELS)) == last[0]:
                editor.set((*at, CHANNELS), last[1], 'The channels of the crops.')


def channels_of_crops(layer: nn.Module, channels: int) -> int:
    """Return the channels that a shared head gives for crops of 14x14."""
    return layer(torch.zeros(1, channels, 14, 14)).shape[1]


def mend_segmentor(editor: Editor, root: Path, stream: Stream) -> None:
    """Mend the heads of a segmentor that reads maps of other channels than before."""
    if stream.was == stream.now:
        return
    for key in ('decode_head', 'auxiliary_head'):
        heads = editor.get((*root, key))
        if heads is None:
            continue
        many = isinstance(heads, (list, tuple))
        for path in [(*root, key, i) for i in range(len(heads))] if many else [(*root, key)]:
            _mend_decode_head(editor, path, stream)


def _mend_decode_head(editor: Editor, path: Path, stream: Stream) -> None:
    head = editor.get(path)
    if CHANNELS in head:
        mend(editor, path, stream, index=head.get('in_index'))
    if head.get('c1_in_channels'):  # of DeepLabV3+, which reads the first map besides
        mend(editor, path, stream, 'c1_in_channels', index=0)
    for key, inner in head.items():
        if isinstance(inner, dict) and 'in_index' in inner:
            _mend_decode_head(editor, (*path, key), stream)


def mend_classifier(editor: Editor, root: Path, stream: Stream, old: dict) -> None:
    """Mend a classifier: average the map where the old backbone did, and mend neck and head.

    ``old`` is the config of the old backbone.
    """
    necks = editor.get((*root, 'neck'))
    pools = stream.was[-1].is_vector and not stream.now[-1].is_vector
    if pools:
        stream = Stream(stream.old, [x.mean((2, 3)) for x in stream.new], stream.size)
    stream = mend_necks(editor, root, stream)
    if pools:
        necks = editor.get((*root, 'neck'))
        if necks is not None:
            necks = [dict(POOLING), *(necks if isinstance(necks, list) else [necks])]
        why = f'{type_name(old)} averages its last map itself.'
        editor.set((*root, 'neck'), necks or dict(POOLING), why)
    path = (*root, 'head')
    head = editor.get(path) or {}
    if CHANNELS in head:
        mend(editor, path, stream)
    elif type_name(head) in SCORING and old.get('num_classes') == stream.was[-1].channels:
        added = dict(
            type=SCORING[type_name(head)],
            num_classes=old['num_classes'],
            in_channels=stream.now[-1].channels,
        )
        for key, value in added.items():
            editor.set((*path, key), value, f'The scores that {type_name(old)} gave itself.')
    elif head and stream.was != stream.now:
        raise SwapError(
            f'its head {type_name(head)} does not say how many channels it reads, and those of '
            f'{type_name(old)} are {stream.was[-1].channels}'
        )
