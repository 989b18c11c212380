"""What is measured: networks, sizes, passes, modes and dtypes, and which of them go together."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

NETWORKS = ('contnet-ti', 'contnet-s', 'contnet-m', 'contnet-b', 'contnet-m-relative')
NETWORKS += ('contnet-m-cp', 'contnet-m-fused', 'plain-ti', 'plain-s', 'plain-m', 'plain-b')
NETWORKS += ('resnet50', 'swin-t', 'convnext-t')
PASSES = ('inference', 'training')
EAGER, COMPILED, DYNAMIC = 'eager', 'compiled', 'dynamic'
MODES = (EAGER, COMPILED)
FLOAT32, TF32, BFLOAT16, PURE_BFLOAT16 = 'float32', 'tf32', 'bfloat16', 'bfloat16-pure'
DTYPES = (FLOAT32, TF32, BFLOAT16, PURE_BFLOAT16)
MULTISCALE = 'multiscale'
MIN_SIDE = 32  # pixels; the stride of the last map

# MMDetection's multi-scale pipelines draw the short side from these and bound the long one.
SHORT_SIDES = range(480, 801, 32)
LONG_SIDE = 1333
DIVISOR = 32
BATCH_SIZE = 2
# Heights and widths in pixels that are common among the images of COCO.
IMAGES = ((480, 640), (427, 640), (426, 640), (425, 640), (375, 500), (360, 640), (612, 612))
MAX_SHAPES = 100


@dataclass(frozen=True)
class Size:
    """Shape of an image batch.

    Args:
        batch: Number of images.
        height: Of each in pixels.
        width: Of each in pixels.
    """

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f'{self.batch}x{self.height}x{self.width}'


@dataclass(frozen=True)
class Case:
    """One row of a table: a network, run in one way.

    Args:
        network: One of ``NETWORKS``.
        mode: ``'eager'``, ``'compiled'`` (for the one size) or ``'dynamic'`` (for any size).
        dtype: One of ``DTYPES``.
        size: Of the images, or ``'multiscale'``.
        pass_name: ``'inference'`` (eval mode, no gradients) or ``'training'`` (train mode, forward
            and backward; the loss is the sum of the means of the maps; no optimizer).
        device: ``'cpu'`` or ``'cuda'``.
    """

    network: str
    mode: str
    dtype: str
    size: Size | str
    pass_name: str
    device: str

    def __str__(self) -> str:
        return f'{self.size} {self.pass_name} {self.network} {self.mode} {self.dtype}'


def parse_size(text: str) -> Size:
    """Read a size as a user writes it, ``'HxW'`` (one image) or ``'BxHxW'``.

    Raises:
        ValueError: If it is neither, or smaller than the networks take.
    """
    if not re.fullmatch(r'[0-9]+(x[0-9]+){1,2}', text):
        raise ValueError(
            f'size {text!r} must be HxW (one image) or BxHxW, such as 800x1333 or 4x224x224; '
            f'only tools/benchmark.py takes {MULTISCALE!r} as well'
        )
    batch, height, width = [1, *map(int, text.split('x'))][-3:]
    if batch < 1 or min(height, width) < MIN_SIDE:
        raise ValueError(
            f'size {text!r}: there must be at least 1 image, and each side at least {MIN_SIDE} '
            'pixels'
        )
    return Size(batch, height, width)


def plan_cases(
    networks: Sequence[str],
    sizes: Sequence[Size | str],
    passes: Sequence[str],
    modes: Sequence[str],
    dtypes: Sequence[str],
    device: str,
) -> list[Case]:
    """List the cases to measure, without duplicates; those of one size and pass are neighbours.

    Two combinations are left out: weights cast to bfloat16 in training, since small updates would
    be rounded away, and checkpointing in inference, where no activations are kept.

    Args:
        networks: Some of ``NETWORKS``.
        sizes: Of the images, or ``'multiscale'``, where compiled means compiled for any size.
        passes: Some of ``PASSES``.
        modes: Some of ``MODES``.
        dtypes: Some of ``DTYPES``.
        device: ``'cpu'`` or ``'cuda'``.

    Raises:
        ValueError: If a dtype or a network does not exist on the device, or no case is left.
    """
    for kind, names in (('network', networks), ('dtype', dtypes)):
        for name in names:
            if device != 'cuda' and (name == TF32 or name.endswith('-fused')):
                raise ValueError(f'{kind} {name!r} needs a CUDA device, got device {device!r}')
    cases = dict.fromkeys(
        Case(
            network,
            DYNAMIC if (size, mode) == (MULTISCALE, COMPILED) else mode,
            dtype,
            size,
            pass_name,
            device,
        )
        for size, pass_name, network, mode, dtype in product(sizes, passes, networks, modes, dtypes)
        if not (dtype == PURE_BFLOAT16 if pass_name == 'training' else network.endswith('-cp'))
    )
    if not cases:
        raise ValueError('nothing to run: networks, passes and dtypes do not go together')
    return [*cases]


def multiscale_shapes(number: int, seed: int) -> list[Size]:
    """Draw shapes of image batches as an epoch of multi-scale training brings them.

    Images keep their ratio and are as large as the bounds of both sides allow. Those of a batch are
    all upright or all wide, as MMDetection's sampler groups them; the batch is as large as its
    largest image, up to the next multiple of 32.

    Args:
        number: Of shapes, no two of which are equal.
        seed: Equal seeds give equal shapes.

    Raises:
        ValueError: If the number is below 1 or above ``MAX_SHAPES``.
    """
    if not 1 <= number <= MAX_SHAPES:
        raise ValueError(f'the number of shapes must be from 1 to {MAX_SHAPES}, got {number}')
    draw = random.Random(seed)
    shapes: dict[Size, None] = {}
    while len(shapes) < number:
        upright = draw.random() < 0.5
        sizes = []
        for _ in range(BATCH_SIZE):
            image = draw.choice(IMAGES)[:: -1 if upright else 1]
            scale = min(draw.choice(SHORT_SIDES) / min(image), LONG_SIDE / max(image))
            sizes.append([int(side * scale + 0.5) for side in image])
        height, width = (-(-max(sides) // DIVISOR) * DIVISOR for sides in zip(*sizes, strict=True))
        shapes[Size(BATCH_SIZE, height, width)] = None
    return list(shapes)
