"""Statistics and channel order of pixels, which belong to the weights of a backbone."""

from __future__ import annotations

from contnet_mm.swap.edit import KeyPath, Swap, SwapError, dotted, walk
from contnet_mm.swap.task import type_name

# What ConTNet's ImageNet weights were trained with: RGB.
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
RGB_FLAGS = ('bgr_to_rgb', 'to_rgb')
WHY = "ConTNet's weights want RGB with ImageNet's mean and deviation."
# Transforms that fill in pixels, and the fields that hold a colour.
FILLS = ('fill_color', 'fill_std', 'pad_val')


def fix_pixels(swap: Swap) -> None:
    """Set mean, deviation and channel order wherever a config states them.

    Raises:
        SwapError: If a preprocessor swaps the channels in the other direction too.
    """
    parts = list(walk(swap.get(())))
    fills = []
    for path, cfg in parts:
        # One preprocessor may hold another, of the branches of semi-supervised training.
        if path[-1:] != ('data_preprocessor',) or 'data_preprocessor' in cfg:
            continue
        if len(cfg.get('mean') or MEAN) != len(MEAN):
            swap.add_warning(f'{dotted(path)} has no three channels, and stays as it is')
            continue
        fills = fills or _replaced_colours(cfg)
        _fix_statistics(swap, path, cfg)
    for path, cfg in parts:
        name = type_name(cfg)
        if name == 'Normalize':
            _fix_statistics(swap, path, cfg)
        elif name == 'Expand' and 'mean' in cfg:
            _set_like(swap, (*path, 'mean'), MEAN)
            swap.set((*path, 'to_rgb'), True, WHY)
        else:
            for key in FILLS:
                value = cfg.get(key)
                colour = list(value) if isinstance(value, (list, tuple)) else None
                new = next((new for old, new in fills if old == colour), None)
                if new:
                    _set_like(swap, (*path, key), new)


def _replaced_colours(cfg: dict) -> list[tuple[list, list]]:
    """Return the colours that stand for the old statistics, and what takes their place.

    Images are BGR until the preprocessor; some transforms round.
    """
    mean, std = list(cfg.get('mean') or [0.0] * 3), list(cfg.get('std') or [1.0] * 3)
    if mean == MEAN or not any(mean):
        return []
    pairs = [(mean[::-1], MEAN[::-1]), (std[::-1], STD[::-1])]
    return pairs + [tuple([round(v) for v in values] for values in pair) for pair in pairs]


def _fix_statistics(swap: Swap, path: KeyPath, cfg: dict) -> None:
    if cfg.get('rgb_to_bgr'):
        raise SwapError(
            f'{dotted(path)} has rgb_to_bgr=True: its images are read as RGB, and whether all of '
            'its transforms know that cannot be told'
        )
    flag = next((key for key in RGB_FLAGS if key in cfg), None)
    if flag is None:  # the name differs from library to library
        is_classifier = swap.config.get('default_scope') == 'mmpretrain'
        flag = 'to_rgb' if type_name(cfg) == 'Normalize' or is_classifier else 'bgr_to_rgb'
    _set_like(swap, (*path, 'mean'), MEAN)
    _set_like(swap, (*path, 'std'), STD)
    swap.set((*path, flag), True, WHY)


def _set_like(swap: Swap, path: KeyPath, numbers: list) -> None:
    """Set numbers as the kind of sequence that is there; equal ones stay as they are."""
    value = swap.get(path)
    if not isinstance(value, (list, tuple)):
        swap.set(path, list(numbers), WHY)
    elif list(value) != numbers:
        swap.set(path, type(value)(numbers), WHY)
