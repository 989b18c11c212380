"""Crops of photographs, as a network trained on ImageNet knows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from contnet_mm.utils.checks import check_integer

# Those in scikit-image's wheel that show what photographs of ImageNet show, in colour.
NATURAL = ('astronaut', 'chelsea', 'coffee', 'motorcycle_left', 'rocket')
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')
# Side of a crop over the shorter side of its photograph.
SHARE = (0.15, 1.0)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, RGB


def natural_crops(
    folder: str | Path | None = None, number: int = 96, size: int = 224, seed: int = 0
) -> Tensor:
    """Cut random squares from photographs and normalise them.

    Args and errors are those of :func:`cut_crops`.

    Returns:
        RGB, normalised by ImageNet's mean and standard deviation, [number, 3, size, size].
    """
    crops = (cut_crops(folder, number, size, seed) - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(crops).float().permute(0, 3, 1, 2).contiguous()


def cut_crops(
    folder: str | Path | None = None, number: int = 96, size: int = 224, seed: int = 0
) -> np.ndarray:
    """Cut random squares from photographs, in turn from each.

    Args:
        folder: Where the photographs are, in folders inside it too, or a single one; those that
            scikit-image carries by default.
        number: Number of crops.
        size: Side of a crop in pixels.
        seed: Seed of the places.

    Returns:
        RGB, [number, size, size, 3] in uint8.

    Raises:
        ModuleNotFoundError: If ``folder`` is None and scikit-image or scikit-learn is missing.
        ValueError: If there is no photograph, or one that cannot be read.
    """
    check_integer('number', number, low=1)
    check_integer('size', size, low=32)
    rng = np.random.default_rng(seed)
    paths = _find(folder)
    if len(paths) > number:  # from the first to the last: sorted files lie class by class
        paths = [paths[i * len(paths) // number] for i in range(number)]
    return np.stack([_cut(paths[i % len(paths)], size, rng) for i in range(number)])


def find_crops(say: Callable[[str], object], folder: str | Path | None = None) -> Tensor | None:
    """Return natural crops; None, after a line about it, where nobody named or has photographs.

    Raises:
        ValueError: If ``folder`` is given and holds no photograph that can be read.
    """
    try:
        return natural_crops(folder)
    except ModuleNotFoundError as error:
        say(f'nothing is inferred: {error}; pip install "contnet_mm[demo]", or give --images')
        return None


def find_natural() -> list[Path]:
    """Return the photographs in colour that scikit-image carries.

    Raises:
        ModuleNotFoundError: If scikit-image or scikit-learn is missing.
        ValueError: If this version of scikit-image carries too few.
    """
    # Needs what the demo needs, which not everyone has installed.
    from contnet_mm.datasets.demo.sources import find_photographs

    found = find_photographs()
    return [found[name] for name in NATURAL if name in found] or [*found.values()]


def _find(folder: str | Path | None) -> list[Path]:
    if folder is None:
        return find_natural()
    if Path(folder).is_file():
        return [Path(folder)]
    paths = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f'{folder} holds no file that ends in one of {", ".join(SUFFIXES)}')
    return paths


def _cut(path: Path, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random square of a photograph, flipped or not, [size, size, 3] uint8."""
    try:
        with Image.open(path) as image:
            image = image.convert('RGB')
    except OSError as error:
        raise ValueError(f'{path} is no image that can be read: {error}') from error
    side = round(min(image.size) * rng.uniform(*SHARE))
    left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
    # Pillow averages where it shrinks: crops are as smooth as those of a training.
    crop = image.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    pixels = np.asarray(crop)
    return pixels[:, ::-1] if rng.integers(2) else pixels
