"""Makes the pictures: a piece of a photograph with digits written over it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from .options import DemoOptions
from .sources import (
    NUM_CLASSES,
    PARTS,
    find_photographs,
    load_photograph,
    load_samples,
    split_samples,
)

# Cityscapes' evaluator leaves smaller instances out.
MIN_AREA = 100
MAX_ANGLE = 15.0
# Largest share of the smaller one of two boxes that the other may cover.
MAX_OVERLAP = 0.1
PLACE_TRIES = 60
SCENE_TRIES = 50
BICUBIC = Image.Resampling.BICUBIC
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass
class Digit:
    """One written digit.

    Args:
        label: The digit, 0 to 9.
        sample: Index of the handwritten sample.
        window: Rows and columns that it is written on.
        alpha: Its opacity there, [h, w] in 0 to 1.
        shape: Every pixel of the digit, hidden ones too, [height, width] bool.
        visible: The pixels that no later digit covers, [height, width] bool.
    """

    label: int
    sample: int
    window: tuple[slice, ...]
    alpha: np.ndarray
    shape: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True)
class Scene:
    """One picture and all that is known of it.

    Args:
        image: RGB, [height, width, 3] uint8.
        photograph: Name of the photograph behind the digits.
        crop: Top, left, bottom and right of the piece shown, in pixels of the photograph.
        digits: The digits in the order they were written.
    """

    image: np.ndarray
    photograph: str
    crop: tuple[int, int, int, int]
    digits: list[Digit]


class SceneMaker:
    """Makes scenes, each from its own random stream, so that their order does not matter.

    Args:
        options: The settings of the data set.
    """

    def __init__(self, options: DemoOptions) -> None:
        self.options = options
        self.photographs = find_photographs()
        self.samples, labels = load_samples()
        self.pools = split_samples(labels, options.seed)

    def make(self, part: str, index: int) -> Scene:
        """Make one scene.

        Args:
            part: 'train' or 'val'.
            index: Number of the scene within its part.

        Raises:
            ValueError: If no arrangement of the digits is found.
        """
        rng = np.random.default_rng([self.options.seed, PARTS.index(part), index])
        name = list(self.photographs)[rng.integers(len(self.photographs))]
        image, crop = crop_photograph(rng, self.photographs[name], part, self.options.size)
        for _ in range(SCENE_TRIES):
            digits = self._place_digits(rng, part)
            if digits and all(digit.visible.sum() >= MIN_AREA for digit in digits):
                return Scene(_write_digits(rng, image, digits), name, crop, digits)
        raise ValueError(
            f'found no room for digits {self.options.digits} of digit_height '
            f'{self.options.digit_height} on images of size {self.options.size}: use fewer'
        )

    def _place_digits(self, rng: np.random.Generator, part: str) -> list[Digit]:
        """Place as many digits as drawn; an empty list when they do not fit."""
        fewest, most = self.options.digits
        digits: list[Digit] = []
        for _ in range(rng.integers(fewest, most + 1)):
            digit = self._place_one(rng, part, digits)
            if digit is None:
                return []
            for earlier in digits:
                earlier.visible &= ~digit.shape
            digits.append(digit)
        return digits

    def _place_one(self, rng: np.random.Generator, part: str, digits: list[Digit]) -> Digit | None:
        label = int(rng.integers(NUM_CLASSES))
        low, high = self.options.digit_height
        for attempt in range(PLACE_TRIES):
            # Ever smaller digits are tried, so that crowded images still fill.
            largest = low + (high - low) * (1 - attempt / PLACE_TRIES)
            sample = int(rng.choice(self.pools[part][label]))
            alpha = render_digit(
                self.samples[sample],
                height=rng.uniform(low, largest),
                angle=rng.uniform(-MAX_ANGLE, MAX_ANGLE),
                threshold=rng.uniform(0.46, 0.58),
            )
            room = np.subtract(self.options.size, alpha.shape)
            if room.min() < 0 or not _is_whole(alpha):
                continue
            starts = [int(rng.integers(space + 1)) for space in room]
            window = tuple(slice(i, i + n) for i, n in zip(starts, alpha.shape, strict=True))
            if all(_covered_share(window, other.window) <= MAX_OVERLAP for other in digits):
                shape = np.zeros(self.options.size, bool)
                shape[window] = alpha >= 0.5
                return Digit(label, sample, window, alpha, shape, shape.copy())
        return None


def crop_photograph(
    rng: np.random.Generator, path: Path, part: str, size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Cut a random piece out of a part's half of a photograph, left or right, and scale it.

    Args:
        rng: Source of randomness.
        path: The photograph.
        part: 'train' or 'val'.
        size: Height and width of the result in pixels.

    Returns:
        The piece, [height, width, 3] uint8, and its top, left, bottom and right in the
        photograph.
    """
    photograph = load_photograph(path)
    rows, columns = photograph.shape[:2]
    middle = columns // 2
    first, last = (0, middle) if part == 'train' else (middle, columns)
    share = min(rows / size[0], (last - first) / size[1]) * rng.uniform(0.6, 1.0)
    height, width = (max(1, int(side * share)) for side in size)
    top = int(rng.integers(rows - height + 1))
    left = first + int(rng.integers(last - first - width + 1))
    # Cut before scaling: the filter must not reach pixels of the other part.
    piece = photograph[top : top + height, left : left + width]
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    scaled = Image.fromarray(np.ascontiguousarray(piece)).resize(size[::-1], BICUBIC)
    return np.asarray(scaled), (top, left, top + height, left + width)


def render_digit(sample: np.ndarray, height: float, angle: float, threshold: float) -> np.ndarray:
    """Draw an 8x8 sample as a smooth, anti-aliased stroke.

    The sample is read as a cubic spline surface; the stroke is where it exceeds the threshold.

    Args:
        sample: Ink of the sample, [8, 8] in 0 to 1.
        height: Height of the upright digit in pixels.
        angle: Anticlockwise rotation in degrees.
        threshold: Ink level of the stroke's edge; lower makes bolder digits.

    Returns:
        Alpha of the digit with its soft edge and nothing around it, [h, w] in 0 to 1.
    """
    rows = np.flatnonzero((ndimage.zoom(sample, 8, order=3) > threshold).any(axis=1))
    scale = height / ((rows[-1] - rows[0] + 1) / 8)
    ink = np.pad(sample, 2)
    radians = np.deg2rad(angle)
    cos, sin = np.cos(radians), np.sin(radians)
    matrix = np.array([[cos, sin], [-sin, cos]]) / scale
    side = int(np.ceil(13 * scale))
    offset = (np.array(ink.shape) - 1) / 2 - matrix @ np.full(2, (side - 1) / 2)
    surface = ndimage.affine_transform(ink, matrix, offset, (side, side), order=3)
    # Ink falls by about 0.5 within a sample pixel, hence an edge about 1.5 pixels wide.
    alpha = np.clip((surface - threshold) * scale / 0.75 + 0.5, 0, 1)
    return alpha[ndimage.find_objects((alpha > 0).astype(np.uint8))[0]]


def _is_whole(alpha: np.ndarray) -> bool:
    """Tell whether the digit is one piece of enough pixels."""
    mask = alpha >= 0.5
    return mask.sum() >= MIN_AREA and ndimage.label(mask, np.ones((3, 3)))[1] == 1


def _covered_share(window: tuple[slice, ...], other: tuple[slice, ...]) -> float:
    """Return the intersection of two windows over the smaller one's area."""
    pairs = list(zip(window, other, strict=True))
    sides = [max(0, min(a.stop, b.stop) - max(a.start, b.start)) for a, b in pairs]
    areas = [math.prod(span.stop - span.start for span in spans) for spans in (window, other)]
    return math.prod(sides) / min(areas)


def _write_digits(rng: np.random.Generator, image: np.ndarray, digits: list[Digit]) -> np.ndarray:
    """Blend the digits into the image, light on dark background and dark on light background."""
    canvas = image.astype(np.float64)
    for digit in digits:
        background = canvas[digit.window]
        luma = (background @ LUMA)[digit.alpha >= 0.5].mean()
        colour = rng.uniform(0, 60, 3) if luma > 127 else rng.uniform(195, 255, 3)
        alpha = (digit.alpha * rng.uniform(0.75, 1.0))[..., None]
        canvas[digit.window] = background * (1 - alpha) + colour * alpha
    return np.rint(canvas).astype(np.uint8)
