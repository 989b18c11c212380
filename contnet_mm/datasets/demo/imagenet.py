"""Writes one crop per digit in ImageNet's layout: ``{train,val}/{0..9}/*.png``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .coco import COMPRESS_LEVEL, save_image
from .scenes import Digit, Scene

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


def write_crops(scene: Scene, folder: Path, first: int) -> None:
    """Write a crop of each digit of a scene.

    Args:
        scene: The scene.
        folder: Folder of the part.
        first: Number of the first crop.
    """
    for number, digit in enumerate(scene.digits, first):
        path = folder / str(digit.label) / f'{number:06d}.png'
        save_image(crop_digit(scene.image, digit), path, compress_level=COMPRESS_LEVEL)
