"""Statistics and channel order of pixels, which belong to the weights of a backbone."""

from __future__ import annotations

from collections.abc import Iterator

from contnet_mm.swap.changes import SwapError
from contnet_mm.swap.edit import Editor, Path, walk
from contnet_mm.swap.task import type_name

# What ConTNet's ImageNet weights were trained with: RGB.
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
RGB_FLAGS = ('bgr_to_rgb', 'to_rgb')
WHY = "ConTNet's weights want RGB with ImageNet's mean and deviation."
# Transforms that fill in pixels, and the fields that hold a colour.
FILLS = ('fill_color', 'fill_std', 'pad_val')


def mend_pixels(editor: Editor) -> None:
    """Mend mean, deviation and channel order wherever a config states them.

    Raises:
        SwapError: If a preprocessor swaps the channels in the other direction too.
    """
    old = None
    for path, cfg in list(_preprocessors(editor)):
        if len(cfg.get('mean') or MEAN) != len(MEAN):
            editor.judge(f'{".".join(map(str, path))} has no three channels, and stays as it is')
            continue
        old = old or (list(cfg.get('mean') or [0.0] * 3), list(cfg.get('std') or [1.0] * 3))
        _mend_statistics(editor, path, cfg)
    for path, cfg in list(walk(editor.root)):
        name = type_name(cfg)
        if name == 'Normalize':
            _mend_statistics(editor, path, cfg)
        elif name == 'Expand' and 'mean' in cfg:
            editor.set((*path, 'mean'), _like(cfg['mean'], MEAN), WHY)
            editor.set((*path, 'to_rgb'), True, WHY)
        elif old:
            _mend_fills(editor, path, cfg, old)


def _preprocessors(editor: Editor) -> Iterator[tuple[Path, dict]]:
    for path, cfg in walk(editor.root):
        if path and path[-1] == 'data_preprocessor' and 'data_preprocessor' not in cfg:
            yield path, cfg


def _mend_statistics(editor: Editor, path: Path, cfg: dict) -> None:
    if cfg.get('rgb_to_bgr'):
        raise SwapError(
            f'{".".join(map(str, path))} has rgb_to_bgr=True: its images are read as RGB, and '
            'whether all of its transforms know that cannot be told'
        )
    flag = next((key for key in RGB_FLAGS if key in cfg), None)
    if flag is None:  # the name differs from library to library
        flag = 'to_rgb' if type_name(cfg) == 'Normalize' or _of_classifier(editor) else RGB_FLAGS[0]
    editor.set((*path, 'mean'), _like(cfg.get('mean'), MEAN), WHY)
    editor.set((*path, 'std'), _like(cfg.get('std'), STD), WHY)
    editor.set((*path, flag), True, WHY)


def _of_classifier(editor: Editor) -> bool:
    return editor.config.get('default_scope') == 'mmpretrain'


def _mend_fills(editor: Editor, path: Path, cfg: dict, old: tuple[list, list]) -> None:
    """Mend colours that are the old statistics; images are BGR until the preprocessor."""
    if old[0] == MEAN or not any(old[0]):
        return
    pairs = [(old[0][::-1], MEAN[::-1]), (old[1][::-1], STD[::-1])]
    pairs += [([round(v) for v in was], [round(v) for v in now]) for was, now in pairs]
    for key in FILLS:
        value = cfg.get(key)
        for was, now in pairs:
            if isinstance(value, (list, tuple)) and list(value) == was:
                editor.set((*path, key), _like(value, now), WHY)
                break


def _like(value: object, numbers: list) -> list | tuple:
    """Return numbers as the kind of sequence that a value is; equal values stay themselves."""
    if isinstance(value, (list, tuple)):
        return value if list(value) == numbers else type(value)(numbers)
    return list(numbers)
