"""Photographs and handwritten digits that installed packages carry, split in two parts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import skimage
from PIL import Image
from sklearn.datasets import load_digits

PARTS = ('train', 'val')
NUM_CLASSES = 10
# Share of the samples of each digit that only held-out images show.
VAL_SHARE = 0.25
MIN_PHOTOGRAPHS = 6

# Photographs inside scikit-image's wheel, each with the Cityscapes stuff class that all of its
# pixels stand for. The names are stand-ins: similar ground, not what the picture shows.
PHOTOGRAPHS = {
    'astronaut': 'building',
    'brick': 'wall',
    'camera': 'building',
    'chelsea': 'terrain',
    'coffee': 'fence',
    'coins': 'sidewalk',
    'grass': 'vegetation',
    'gravel': 'road',
    'moon': 'terrain',
    'motorcycle_left': 'building',
    'rocket': 'sky',
}


def find_photographs(folder: Path | None = None) -> dict[str, Path]:
    """Find the photographs that the installed scikit-image carries; downloads nothing.

    Args:
        folder: Where to look; the data folder of scikit-image by default.

    Returns:
        Path of each photograph by its name, sorted by name.

    Raises:
        ValueError: If fewer than ``MIN_PHOTOGRAPHS`` are there.
    """
    folder = folder or Path(skimage.__file__).parent / 'data'
    paths = [folder / f'{name}{suffix}' for name in PHOTOGRAPHS for suffix in ('.png', '.jpg')]
    found = {path.stem: path for path in sorted(paths) if path.is_file()}
    if len(found) < MIN_PHOTOGRAPHS:
        raise ValueError(
            f'scikit-image {skimage.__version__} carries only {sorted(found)} in {folder}, but at '
            f'least {MIN_PHOTOGRAPHS} of {sorted(PHOTOGRAPHS)} are needed: install a version '
            'whose wheel holds them, such as 0.24 to 0.26'
        )
    return found


@lru_cache(maxsize=len(PHOTOGRAPHS))
def load_photograph(path: Path) -> np.ndarray:
    """Return a photograph as RGB, [height, width, 3] uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert('RGB'))


@lru_cache(maxsize=1)
def load_samples() -> tuple[np.ndarray, np.ndarray]:
    """Return the digit samples, [1797, 8, 8] in 0 to 1, and their labels, [1797]."""
    digits = load_digits()
    return digits.images / 16.0, digits.target


def split_samples(labels: np.ndarray, seed: int) -> dict[str, list[np.ndarray]]:
    """Split sample indices in two disjoint parts, the same share of each digit.

    Args:
        labels: Digit of each sample, [N].
        seed: Seed of the split.

    Returns:
        For each part a list with the indices of each digit.
    """
    rng = np.random.default_rng([seed, len(PARTS)])
    split: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    for digit in range(NUM_CLASSES):
        indices = rng.permutation(np.flatnonzero(labels == digit))
        num_val = round(len(indices) * VAL_SHARE)
        split['val'].append(indices[:num_val])
        split['train'].append(indices[num_val:])
    return split
