"""Layout of tokens: which token of a map lies where once the map is cut into windows.

Windows at the bottom and at the right are as small as the map makes them: nothing is padded, so
that nothing has to be masked, and no token is computed that is not there. Shapes: B batch, H x W
map, C channels, T = B * H * W tokens, N tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Windows(NamedTuple):
    """Windows of one shape.

    Args:
        count: How many.
        height: Of each, in tokens.
        width: Of each, in tokens.
    """

    count: int
    height: int
    width: int


def area(windows: Windows) -> int:
    """Tokens of each of these windows."""
    return windows.height * windows.width


class Maps(NamedTuple):
    """Whole maps, not cut yet.

    Args:
        batch: How many.
        height: Of each, in tokens.
        width: Of each, in tokens.
    """

    batch: int
    height: int
    width: int


def cut(height: int, width: int, side: int, count: int = 1) -> list[Windows]:
    """Cut maps into square windows, and into smaller ones where a strip is left.

    Args:
        height: Of a map in tokens.
        width: Of a map in tokens.
        side: Of a window in tokens.
        count: How many maps.

    Returns:
        Windows by shape: whole ones, those of the strip to the right, those of the strip below, and
        those of the corner, as far as there are any.
    """
    return [
        Windows(count * rows * columns, h, w)
        for rows, h in _bands(height, side)
        for columns, w in _bands(width, side)
    ]


def _bands(length: int, side: int) -> list[tuple[int, int]]:
    """Returns how many bands of which length; there is one at least."""
    bands = [(length // side, side), (1, length % side)]
    return [(number, size) for number, size in bands if number and size]


def token_order(maps: Tensor, sides: Sequence[int]) -> Tensor:
    """Flatten maps so that each window is one contiguous run of tokens.

    Several sides nest: inside each window of the first side, each window of the second is a run as
    well. Both encoders of a block then read the same order, with no copy between them.

    Args:
        maps: Any values, [n, H, W].
        sides: Sides of the windows, the largest first.

    Returns:
        The values, those of the windows of :func:`cut` one after another, [n * H * W].
    """
    if not sides:
        return maps.flatten()
    parts, (side, *inner) = [], sides
    number, height, width = maps.shape
    top = 0
    for rows, h in _bands(height, side):
        left = 0
        for columns, w in _bands(width, side):
            part = maps[:, top : top + rows * h, left : left + columns * w]
            part = part.reshape(number, rows, h, columns, w).transpose(2, 3)
            place = token_order(torch.arange(h * w, device=maps.device).view(1, h, w), inner)
            parts.append(part.reshape(-1, h * w)[:, place].flatten())
            left += columns * w
        top += rows * h
    return torch.cat(parts) if parts else maps.flatten()


def window_order(
    batch: int, height: int, width: int, sides: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Tell where the tokens of a channels-last map go.

    Returns:
        The place in the map of each token in the order of :func:`token_order`, and the place in
        that order of each token of the map, [T] each; None if both orders are the same.
    """
    if width <= sides[-1] and (batch == 1 or len(_bands(height, sides[0])) == 1):
        return None
    make = _make_order if _must_be_made_anew() else _kept_order
    return make(batch, height, width, sides, device)


def _make_order(
    batch: int, height: int, width: int, sides: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    places = torch.arange(batch * height * width, device=device)
    order = token_order(places.view(batch, height, width), sides)
    inverse = torch.empty_like(order)
    inverse[order] = places
    return order, inverse


@lru_cache(maxsize=8)  # as many as a few image sizes need; large maps take a megabyte each
def _kept_order(*args) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # what is kept may be used in training later
        return _make_order(*args)


def _must_be_made_anew() -> bool:
    """Tell whether results must not be kept: tensors that torch.export makes hold no values.

    The compiler of torch before 2.4 cannot look into what keeps results.
    """
    return not hasattr(torch.library, 'custom_op') or torch.empty(0).__class__ is not Tensor


def places(side: int, height: int, width: int, inner: int, device: torch.device) -> Tensor:
    """Tell where in a whole window the tokens of a smaller or whole one lie.

    Args:
        side: Side p of a whole window.
        height: Of this window, at most p.
        width: Of this window, at most p.
        inner: Side of the windows nested in it.
        device: Of the result.

    Returns:
        Row times p plus column of each token in their order, [height * width].
    """
    make = _make_places if _must_be_made_anew() else _kept_places
    return make(side, height, width, inner, device)


def _make_places(side: int, height: int, width: int, inner: int, device: torch.device) -> Tensor:
    grid = torch.arange(side * side, device=device).view(1, side, side)
    return token_order(grid[:, :height, :width], [inner])


@lru_cache(maxsize=64)  # small ones, of the shapes that windows at the border have
def _kept_places(*args) -> Tensor:
    with torch.inference_mode(False):  # as above
        return _make_places(*args)


class _Reorder(torch.autograd.Function):
    """Selects rows; being a permutation, its gradient selects as well instead of adding up."""

    @staticmethod
    def forward(ctx, tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return tokens.index_select(0, order)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(grad, inverse, order), None, None


def reorder(tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Permute tokens, [T, C] -> [T, C]; ``inverse`` is the permutation that undoes ``order``."""
    return _Reorder.apply(tokens, order, inverse)


def map_windows(
    function: Callable[..., Tensor],
    tokens: Tensor,
    windows: Sequence[Windows],
    side: int,
    *others: Tensor,
) -> Tensor:
    """Apply a function to all windows of one shape at a time.

    Args:
        function: Takes tokens, [n, N, C], their windows, and the same tokens of the others; returns
            tokens, [n, N, D].
        tokens: Tokens, [T, C].
        windows: What the tokens are, in their order.
        side: Cut these windows further, to windows of this side.
        *others: Further tensors, [T, any width].

    Returns:
        Tokens, [T, D].
    """
    parts, start = [], 0
    for group in windows:
        stop = start + group.count * area(group)
        whole = [
            x[start:stop].view(group.count, area(group), x.shape[-1]) for x in (tokens, *others)
        ]
        pieces, begin = [], 0
        for piece in cut(group.height, group.width, side):
            end = begin + piece.count * area(piece)
            number = group.count * piece.count
            part, *beside = (
                x[:, begin:end].reshape(number, area(piece), x.shape[-1]) for x in whole
            )
            part = function(part, Windows(number, piece.height, piece.width), *beside)
            pieces.append(part.reshape(group.count, end - begin, part.shape[-1]))
            begin = end
        part = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        parts.append(part.reshape(stop - start, part.shape[-1]))
        start = stop
    return parts[0] if len(parts) == 1 else torch.cat(parts)
