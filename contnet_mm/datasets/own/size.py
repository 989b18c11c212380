"""Another size of images, wherever the pipelines and the preprocessor of a config state it."""

from __future__ import annotations

from contnet_mm.swap.edit import KeyPath, Swap, SwapError, dotted, walk
from contnet_mm.swap.task import library_of, type_name

# Arguments of transforms that hold sizes, and whether these are (width, height).
KEYS = {
    'Resize': ('scale', True),
    'RandomResize': ('scale', True),
    'RandomChoiceResize': ('scales', True),
    'RandomResizedCrop': ('scale', False),
    'EfficientNetRandomCrop': ('scale', False),
    'ResizeEdge': ('scale', False),
    'RandomCrop': ('crop_size', False),
    'CenterCrop': ('crop_size', False),
    'EfficientNetCenterCrop': ('crop_size', False),
    'Pad': ('size', True),
}
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Variables of configs that the loaders name.
PIPELINES = ('train_pipeline', 'test_pipeline')
# These tell which size a pipeline makes: the first that is there.
MEASURES = ('RandomResizedCrop', 'EfficientNetRandomCrop', 'RandomCrop', 'Resize')


def set_size(swap: Swap, size: tuple[int, int]) -> None:
    """Scale every size of images from the one that a config is for to another one.

    Args:
        swap: The config.
        size: Height and width in pixels.

    Raises:
        SwapError: If the config states no size that could be scaled.
    """
    steps = [
        (path, step)
        for key in (*LOADERS, *PIPELINES)
        for path, step in walk(swap.config.get(key), (key,))
        if type_name(step) in KEYS and KEYS[type_name(step)][0] in step
    ]
    old = _old_size(library_of(swap.config), steps)
    for path, step in steps:
        key, wide = KEYS[type_name(step)]
        _scale(swap, (*path, key), old, size, wide)
    if library_of(swap.config) == 'mmseg':
        for path in (('model', 'data_preprocessor', 'size'), ('data_preprocessor', 'size')):
            if swap.get(path):
                _scale(swap, path, old, size, wide=False)


def _old_size(library: str, steps: list[tuple[KeyPath, dict]]) -> tuple[int, int]:
    """Return the size of images that a config is for.

    Detectors are trained at several sizes and tested at one; the others are trained on crops.
    """
    loaders = ('val_dataloader', 'train_dataloader')
    for loader in loaders if library == 'mmdet' else loaders[::-1]:
        for name in MEASURES:
            for path, step in steps:
                if path[0] == loader and type_name(step) == name:
                    key, is_wide = KEYS[name]
                    size = _as_pair(step[key], is_wide)
                    if size:
                        return size
    raise SwapError(
        f'none of {", ".join(MEASURES)} in its pipelines states a size that --size could replace'
    )


def _as_pair(value: object, is_wide: bool) -> tuple[int, int] | None:
    """Return height and width of what a transform is given, None where it is something else."""
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], int):
        return tuple(value[::-1] if is_wide else value)
    return None


def _scale(swap: Swap, path: KeyPath, old: tuple, new: tuple, wide: bool) -> None:
    def scale(value: object) -> object:
        if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple):
            return type(value)(scale(one) for one in value)
        ratios = [after / before for before, after in zip(old, new, strict=True)]
        if isinstance(value, int):
            # One number stands for both sides.
            if new[0] != new[1]:
                raise SwapError(f'{dotted(path)} is {value}, one number: --size must be square')
            return round(value * ratios[0])
        if isinstance(value, list | tuple) and len(value) == 2:
            ratios = ratios[::-1] if wide else ratios
            return type(value)(round(v * r) for v, r in zip(value, ratios, strict=True))
        return value

    swap.set(path, scale(swap.get(path)), f'Images of {new[0]}x{new[1]} pixels.')
