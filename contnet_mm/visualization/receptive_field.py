"""The effective receptive field of a backbone's maps (Luo et al. 2016, arXiv 1701.04128)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

# Pixels of the largest windows of ConTNet: 14 tokens at stride 16, 7 at stride 32.
WINDOW = 224
# Distance in pixels of the positions that are looked at; the stride of the last map.
STEP = 32
# What an image has on each side of the field, so that every position of a window fits.
MARGIN = WINDOW // 2 - STEP // 2


def effective_receptive_field(
    backbone: nn.Module, images: Iterable[Tensor], side: int, seed: int = 0
) -> Tensor:
    """Average how much each pixel has to say in a position of each map.

    That is the absolute gradient of a value of that position by the pixels, summed over colours and
    divided by its sum over the image. The value is a sum of the channels with random normal
    weights, drawn anew for each image: the plain sum is constant behind a layer norm. In a network
    with windows the field depends on the position: one in the corner of its window sees to one side
    alone. Positions therefore go through a whole window in the middle of the image, in random
    order, and fields are laid upon one another. A multiple of 49 images has seen all positions
    equally often.

    Args:
        backbone: A network that gives maps [1, C, H, W], such as ConTNet or ResNet.
        images: Normalised, [1, 3, S, S] each, S being ``side + 2 * MARGIN``.
        side: Side of the fields in pixels, a multiple of 64.
        seed: Seed of weights and positions.

    Returns:
        One field per map, [maps, side, side], whose middle is the pixel that a position lies on.

    Raises:
        ValueError: If ``side`` is no multiple of 64, an image has another size, or the backbone
            gives something other than maps of the image.
    """
    if side < 64 or side % 64:
        raise ValueError(f'side must be a multiple of 64, got {side}')
    size, places = side + 2 * MARGIN, range(0, WINDOW, STEP)
    offsets = list(product(places, places))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(offsets))
    fields, number = None, 0
    for image in images:
        if image.shape[2:] != (size, size):
            raise ValueError(f'images must be {size} x {size}, got {[*image.shape]}')
        top, left = offsets[order[number % len(order)]]
        found = _fields_at(backbone, image, top, left, side, rng)
        fields, number = found if fields is None else fields + found, number + 1
    if fields is None:
        raise ValueError('there must be an image')
    return fields / number


def _fields_at(
    backbone: nn.Module, image: Tensor, top: int, left: int, side: int, rng: np.random.Generator
) -> Tensor:
    """Return the fields of the position that lies in the middle of a square, [maps, side, side]."""
    image = image.detach().requires_grad_()
    fields = []
    with torch.enable_grad():
        maps = backbone(image)
        for level, x in enumerate(maps):
            if not isinstance(x, Tensor) or x.dim() != 4 or image.shape[2] % x.shape[2]:
                raise ValueError(
                    f'{type(backbone).__name__} gives no maps of an image at output {level}, so '
                    'its positions have no field'
                )
            stride = image.shape[2] // x.shape[2]
            row, column = ((edge + side // 2) // stride for edge in (top, left))
            weights = torch.from_numpy(rng.standard_normal(x.shape[1])).to(x)
            value = weights @ x[0, :, row, column]
            more = level + 1 < len(maps)
            (grad,) = torch.autograd.grad(value, image, retain_graph=more)
            field = grad.abs().sum((0, 1))
            field = field / field.sum().clamp(min=torch.finfo(field.dtype).tiny)
            fields.append(field[top : top + side, left : left + side])
    return torch.stack(fields)


def side_holding(field: Tensor, share: float) -> int:
    """Return the side of the smallest square around the middle that holds a share of a field.

    Args:
        field: [side, side].
        share: Of the sum of the field, from 0 to 1.

    >>> field = torch.zeros(64, 64)
    >>> field[32, 32], field[30, 33] = 0.9, 0.1
    >>> side_holding(field, 0.5), side_holding(field, 0.95)
    (1, 5)
    """
    distance = torch.arange(len(field)) - len(field) // 2
    ring = torch.maximum(distance.abs()[:, None], distance.abs()[None])
    sums = torch.bincount(ring.flatten(), field.detach().cpu().double().flatten()).cumsum(0)
    return 2 * int(torch.searchsorted(sums, share * sums[-1])) + 1
