"""Shapes of image batches as an epoch of multi-scale training brings them."""

from __future__ import annotations

import random

from contnet_mm.benchmark.plan import Size

# MMDetection's multi-scale pipelines draw the short side from these and bound the long one.
SHORT_SIDES = range(480, 801, 32)
LONG_SIDE = 1333
DIVISOR = 32
BATCH_SIZE = 2
# Heights and widths in pixels that are common among the images of COCO.
IMAGES = ((480, 640), (427, 640), (426, 640), (425, 640), (375, 500), (360, 640), (612, 612))
MAX_SHAPES = 100


def resize_keeping_ratio(image: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """Give the size of an image that is scaled until a side meets its bound.

    Args:
        image: Height and width in pixels.
        short: Bound of the short side.
        long: Bound of the long side.
    """
    scale = min(short / min(image), long / max(image))
    return int(image[0] * scale + 0.5), int(image[1] * scale + 0.5)


def multiscale_shapes(number: int, seed: int) -> list[Size]:
    """Draw the shapes of different batches.

    The images of a batch are all upright or all wide, as MMDetection's sampler groups them; the
    batch is as large as its largest image, up to the next multiple of 32.

    Args:
        number: Of shapes, no two of which are equal.
        seed: Equal seeds give equal shapes.

    Raises:
        ValueError: If there are not as many.
    """
    if not 1 <= number <= MAX_SHAPES:
        raise ValueError(f'the number of shapes must be from 1 to {MAX_SHAPES}, got {number}')
    draw = random.Random(seed)
    shapes: dict[Size, None] = {}
    while len(shapes) < number:
        upright = draw.random() < 0.5
        sizes = []
        for _ in range(BATCH_SIZE):
            image = draw.choice(IMAGES)
            image = (image[1], image[0]) if upright else image
            sizes.append(resize_keeping_ratio(image, draw.choice(SHORT_SIDES), LONG_SIDE))
        height, width = (-(-max(sides) // DIVISOR) * DIVISOR for sides in zip(*sizes, strict=True))
        shapes[Size(BATCH_SIZE, height, width)] = None
    return list(shapes)
