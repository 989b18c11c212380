"""Writes one crop per digit in ImageNet's layout: ``{train,val}/{0..9}/*.png``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .scenes import Digit, Scene
from .sources import NUM_CLASSES

# Side of a crop over the longer side of its digit.
CONTEXT = 1.3


def crop_digit(image: np.ndarray, digit: Digit) -> np.ndarray:
    """Cut out a digit with some of its surroundings.

    Args:
        image: RGB, [height, width, 3] uint8.
        digit: One of its digits.

    Returns:
        A square around the digit, moved inward where the image ends, [side, side, 3] uint8.
    """
    rows, columns = (np.flatnonzero(digit.shape.any(axis=axis)) for axis in (1, 0))
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = min(round(CONTEXT * longer), *image.shape[:2])
    top, left = (
        int(np.clip((span[0] + span[-1] + 1 - side) // 2, 0, end - side))
        for span, end in zip((rows, columns), image.shape[:2], strict=True)
    )
    return image[top : top + side, left : left + side]


def save_png(values: np.ndarray, path: Path) -> None:
    """Write an image, [height, width] or [height, width, 3]."""
    # Compressing harder took a third of the time of making a data set.
    Image.fromarray(values).save(path, compress_level=1)


class ImageNetWriter:
    """Writes the digits of one part as they come.

    Args:
        root: Folder of the ImageNet data set.
        part: 'train' or 'val'.
    """

    def __init__(self, root: Path, part: str) -> None:
        self.root = root / part
        self.count = 0
        for label in range(NUM_CLASSES):
            (self.root / str(label)).mkdir(parents=True, exist_ok=True)

    def add(self, scene: Scene) -> None:
        """Write a crop of each digit of the next scene."""
        for digit in scene.digits:
            self.count += 1
            path = self.root / str(digit.label) / f'{self.count:06d}.png'
            save_png(crop_digit(scene.image, digit), path)
