"""The number of classes, wherever the model of a config and its evaluators state it."""

from __future__ import annotations

import colorsys

from contnet_mm.datasets.check.heads import CLASSLESS
from contnet_mm.swap.edit import KeyPath, Swap, SwapError, dotted, walk
from contnet_mm.swap.task import kind_of, library_of

TASKS = ('detection', 'instance segmentation', 'semantic segmentation', 'classification')
WEIGHTS = 'class_weight'


def set_classes(swap: Swap, classes: tuple[str, ...]) -> None:
    """Set every number of classes in a config, and what depends on it.

    Args:
        swap: The config, with nothing of the data set changed yet.
        classes: The names.

    Raises:
        SwapError: If its task is none of ``TASKS``, or another head has classes of its own.
    """
    kind = kind_of(swap.config)
    if kind not in TASKS:
        raise SwapError(f'it is for {kind}, which is none of {", ".join(TASKS)}')
    number = len(classes)
    why = f'The data has {number} class{"es" if number > 1 else ""}.'
    for key in ('model', 'data_preprocessor'):
        for path, part in list(walk(swap.config.get(key), (key,))):
            if path[-1] == 'semantic_head':
                raise SwapError(f'{dotted(path)} learns from label maps, which the data has not')
            if any(name in CLASSLESS for name in path):
                continue
            if 'num_classes' in part:
                swap.set((*path, 'num_classes'), number, why)
            if isinstance(part.get(WEIGHTS), list | tuple):
                _set_weights(swap, path, number)
    if library_of(swap.config) == 'mmpretrain':
        _limit_topk(swap, number)


def make_palette(number: int) -> list[tuple[int, int, int]]:
    """Return distinct colours, RGB from 0 to 255, the same for the same number.

    >>> make_palette(3)
    [(230, 46, 46), (46, 230, 46), (46, 46, 230)]
    """
    hues = [index / number for index in range(number)]
    colours = [colorsys.hsv_to_rgb(hue, 0.8, 0.9) for hue in hues]
    return [tuple(round(255 * value) for value in colour) for colour in colours]


def _set_weights(swap: Swap, path: KeyPath, number: int) -> None:
    """Set a loss's weights of classes: equal ones stay equal, others are for other classes."""
    weights = list(swap.get((*path, WEIGHTS)))
    *first, last = weights
    if len(set(first)) == 1:  # of a background too, if the last is another
        background = [last] if last != first[0] else []
        new = [first[0]] * number + background
        swap.set((*path, WEIGHTS), new, 'As many as there are classes.')
    else:
        swap.set((*path, WEIGHTS), None, 'They were for other classes.')


def _limit_topk(swap: Swap, number: int) -> None:
    """Drop the k of top-k accuracies that are no less than the number of classes."""
    why = f'Of {number} classes the {number} best always hold the right one.'
    parts = [((key,), swap.config.get(key)) for key in ('model', 'val_evaluator', 'test_evaluator')]
    for root, content in parts:
        for path, part in list(walk(content, root)):
            given = part.get('topk')
            if isinstance(given, list | tuple):
                kept = type(given)(k for k in given if k < number) or type(given)([1])
                swap.set((*path, 'topk'), kept, why)
