"""What is measured: networks, sizes, passes, modes and dtypes, and which of them go together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

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
class Cell:
    """One line of a table: a network, run in one way.

    Args:
        network: One of ``NETWORKS``.
        mode: One of ``MODES``, or ``'dynamic'``.
        dtype: One of ``DTYPES``.
    """

    network: str
    mode: str
    dtype: str

    def __str__(self) -> str:
        return f'{self.network} {self.mode} {self.dtype}'


def parse_size(text: str) -> Size | str:
    """Read a size as a user writes it.

    Args:
        text: ``'HxW'`` (one image), ``'BxHxW'`` or ``'multiscale'``.

    Returns:
        The size, or ``'multiscale'``.

    Raises:
        ValueError: If it is none of these, or smaller than the networks take.
    """
    if text == MULTISCALE:
        return text
    if not re.fullmatch(r'[0-9]+(x[0-9]+){1,2}', text):
        raise ValueError(
            f'size {text!r} must be HxW (one image) or BxHxW, such as 800x1333 or 4x224x224, or '
            f'{MULTISCALE!r}'
        )
    numbers = [int(number) for number in text.split('x')]
    batch, height, width = [1, *numbers][-3:]
    if batch < 1 or min(height, width) < MIN_SIDE:
        raise ValueError(
            f'size {text!r}: there must be at least 1 image, and each side at least {MIN_SIDE} '
            'pixels'
        )
    return Size(batch, height, width)


def plan_cells(
    networks: Sequence[str],
    modes: Sequence[str],
    dtypes: Sequence[str],
    pass_name: str,
    device: str,
) -> list[Cell]:
    """List the cells of a table, without those that would be another cell again.

    That are weights cast to bfloat16 in training, where nobody can learn with them, and the
    recomputing of activations in inference, where none are kept.

    Args:
        networks: Some of ``NETWORKS``.
        modes: Some of ``MODES``, or ``'dynamic'``.
        dtypes: Some of ``DTYPES``.
        pass_name: One of ``PASSES``.
        device: ``'cpu'`` or ``'cuda'``.

    Raises:
        ValueError: If a dtype or a network is not there on the device.
    """
    fused = [network for network in networks if network.endswith('-fused')]
    if device != 'cuda' and fused:
        raise ValueError(f'network {fused[0]!r} is one of CUDA devices, got device {device!r}')
    if device != 'cuda' and TF32 in dtypes:
        raise ValueError(f'dtype {TF32!r} is one of CUDA devices, got device {device!r}')
    training = pass_name == 'training'
    return [
        Cell(network, mode, dtype)
        for network in dict.fromkeys(networks)
        for mode in dict.fromkeys(modes)
        for dtype in dict.fromkeys(dtypes)
        if not (training and dtype == PURE_BFLOAT16)
        and not (not training and network.endswith('-cp'))
    ]
