"""What is measured: networks, sizes, passes, modes and dtypes, and which of them go together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

NETWORKS = ('contnet-ti', 'contnet-s', 'contnet-m', 'contnet-b', 'contnet-m-encoder')
NETWORKS += ('contnet-m-relative', 'contnet-m-cp', 'resnet50', 'swin-t', 'convnext-t')
PASSES = ('inference', 'training')
MODES = EAGER, COMPILED = 'eager', 'compiled'
DTYPES = FLOAT32, TF32, BFLOAT16, PURE_BFLOAT16 = 'float32', 'tf32', 'bfloat16', 'bfloat16-pure'
MIN_SIDE = 32  # pixels; the stride of the last map


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
        mode: ``'eager'``, or ``'compiled'`` for the one size.
        dtype: One of ``DTYPES``.
        size: Of the images.
        pass_name: ``'inference'`` (eval mode, no gradients) or ``'training'`` (train mode, forward
            and backward; the loss is the sum of the means of the maps; no optimizer).
        device: ``'cpu'`` or ``'cuda'``.
    """

    network: str
    mode: str
    dtype: str
    size: Size
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
            f'size {text!r} must be HxW (one image) or BxHxW, such as 800x1333 or 4x224x224'
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
    sizes: Sequence[Size],
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
        sizes: Of the images.
        passes: Some of ``PASSES``.
        modes: Some of ``MODES``.
        dtypes: Some of ``DTYPES``.
        device: ``'cpu'`` or ``'cuda'``.

    Raises:
        ValueError: If a dtype does not exist on the device, or no case is left.
    """
    if device != 'cuda' and TF32 in dtypes:
        raise ValueError(f'dtype {TF32!r} needs a CUDA device, got device {device!r}')
    cases = dict.fromkeys(
        Case(network, mode, dtype, size, pass_name, device)
        for size, pass_name, network, mode, dtype in product(sizes, passes, networks, modes, dtypes)
        if not (dtype == PURE_BFLOAT16 if pass_name == 'training' else network.endswith('-cp'))
    )
    if not cases:
        raise ValueError('nothing to run: networks, passes and dtypes do not go together')
    return [*cases]
