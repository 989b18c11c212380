"""Which token of a map lies where once the map is partitioned into windows.

Windows at the bottom and right border are as small as the map makes them: nothing is padded, so
that no token is computed that does not exist. Two window sizes nest: in the order of tokens each
outer window is one run of tokens, and so is each inner window inside it. Both encoders of a block
therefore share one order. Shapes: B images, H x W map, L = H * W tokens of an image, C channels,
P = window_size ** 2 tokens of a whole window.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from contnet_mm.models.mode import is_in_functorch

# Layouts that are kept, in bytes per device. An image of 800 x 1333 takes 2 MB.
CACHE_BYTES = 64 * 2**20
# CUDA kernels put windows on a grid axis that ends here.
MAX_WINDOWS = 65535
HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op')  # torch 2.4
Send = Callable[[np.ndarray], Tensor]  # copies to a device


class Way(Enum):
    """How attention inside windows is computed; see :mod:`~contnet_mm.models.window_attention`."""

    CUMULATIVE = 'one kernel call for windows of all shapes, given their cumulative lengths'
    PADDED = 'windows padded to whole ones, one masked scaled_dot_product_attention'
    GROUPED = 'plain products, one group of windows of equal shape after the other'
    OPERATOR = 'GROUPED behind a custom operator, for torch.compile on a CPU'
    TRACED = 'windows padded to whole ones, plain products, for torch.export'


class WindowGroup(NamedTuple):
    """Windows of one shape, as runs of tokens.

    They lie in ``count`` larger runs of ``stride`` tokens, ``repeats`` of them in each.

    Args:
        start: First token of the first larger run.
        count: Number of larger runs.
        stride: Tokens of a larger run.
        offset: First token of these windows in a larger run.
        repeats: Windows in a larger run.
        height: Of a window in tokens.
        width: Of a window in tokens.
        rank: Where these tokens stand in the order of a whole window, [height * width]; None if
            this window is whole. No tensor: torch.func would bind it to one of its levels.
    """

    start: int
    count: int
    stride: int
    offset: int
    repeats: int
    height: int
    width: int
    rank: np.ndarray | None

    def of(self, tokens: Tensor) -> Tensor:
        """View the tokens of these windows, [B, L, *] -> [B, count, repeats, height * width, *]."""
        area = self.height * self.width
        runs = tokens[:, self.start : self.start + self.count * self.stride]
        runs = runs.unflatten(1, (self.count, self.stride))
        runs = runs[:, :, self.offset : self.offset + self.repeats * area]
        return runs.unflatten(2, (self.repeats, area))


def join_groups(parts: Sequence[Tensor], groups: Sequence[WindowGroup]) -> Tensor:
    """Put together what :meth:`WindowGroup.of` takes apart.

    Args:
        parts: Tokens of each group, [B, count, repeats, height * width, C].
        groups: All groups of a map, in their order.

    Returns:
        [B, L, C].
    """
    runs: dict[int, list[Tensor]] = {}
    for part, group in zip(parts, groups, strict=True):
        runs.setdefault(group.start, []).append(part.flatten(2, 3))
    return _join([_join(run, 2).flatten(1, 2) for run in runs.values()], 1)


def _join(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


class WindowRun(NamedTuple):
    """As many windows, of any shapes, as a kernel takes at once.

    Args:
        num_tokens: Tokens of all of them.
        cumulative_lengths: First token of each window, and the end, [windows + 1] in int32.
    """

    num_tokens: int
    cumulative_lengths: Tensor


class Padding(NamedTuple):
    """How windows at the border are padded to whole ones.

    Args:
        index: Token in each place of each padded window, [windows * P]; any token of the window
            where there is none.
        place: Place of each token among those, [L].
        mask: What to add to the logits of each key: 0, or minus infinity where there is no token,
            [windows or B * windows, 1, 1, P].
    """

    index: Tensor
    place: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one size.

    Args:
        position_index: Row times window size plus column of each token in its window, [L].
        groups: Windows by shape, for ``Way.GROUPED`` alone.
        runs: Windows of all B images, for ``Way.CUMULATIVE`` alone.
        padding: For ``Way.PADDED`` and ``Way.TRACED``; None where all windows are whole.
    """

    position_index: Tensor
    groups: tuple[WindowGroup, ...] = ()
    runs: tuple[WindowRun, ...] = ()
    padding: Padding | None = None


@dataclass(frozen=True, eq=False)
class WindowLayout:
    """All that follows from the size of a map and two window sizes.

    Args:
        window_sizes: Outer and inner, in tokens; the inner one divides the outer one.
        way: How attention is computed.
        is_traced: Whether a compiler or tracer records what is computed.
        permutation: Token of the map, row by row, in each place of the order of windows, [L]; None
            if both orders are the same.
        inverse: Place of each token of the map in the order of windows, [L]; None likewise.
        map_height: Height of the map in tokens, a scalar on the CPU: a compiler would make a
            program for each plain number.
        windows: The windows of each size.
    """

    window_sizes: tuple[int, int]
    way: Way
    is_traced: bool
    permutation: Tensor | None
    inverse: Tensor | None
    map_height: Tensor
    windows: dict[int, Windows]

    def to_windows(self, x: Tensor) -> Tensor:
        """Bring a channels-last map into the order of windows, [B, C, H, W] -> [B, L, C]."""
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)  # a view of a channels-last map
        if self.permutation is None:
            return tokens
        return self.reorder(tokens, self.permutation, self.inverse)

    def to_map(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Bring tokens back into a channels-last map, [B, L, C] -> [B, C, H, W]."""
        if self._is_compiled and HAS_CUSTOM_OPS:
            return _to_map(tokens, self.inverse, self.permutation, height, width)
        if self.permutation is not None:
            tokens = self.reorder(tokens, self.inverse, self.permutation)
        return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)

    def reorder(self, tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        """Select tokens, [B, L, C] -> [B, len(order), C]; ``inverse`` selects their gradients."""
        if self.is_traced and not self._is_compiled:
            return tokens.index_select(1, order)
        function = _CompiledReorder if self.is_traced else _Reorder
        return function.apply(tokens, order, inverse)

    @property
    def _is_compiled(self) -> bool:
        """Whether it is torch.compile that records."""
        return self.is_traced and self.way not in (Way.GROUPED, Way.TRACED)


class _Reorder(torch.autograd.Function):
    """Selects rows; being a permutation, its gradient selects as well instead of adding up."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return tokens.index_select(1, order)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, order, inverse = inputs
        ctx.save_for_backward(order, inverse)
        ctx.save_for_forward(order, inverse)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(grad, inverse, order), None, None

    @staticmethod
    def jvp(ctx, tangent: Tensor, *_) -> Tensor:
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(tangent, order, inverse)


class _CompiledReorder(torch.autograd.Function):
    """The same in the only form that torch.compile of torch 2.11 takes."""

    @staticmethod
    def forward(ctx, tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return tokens.index_select(1, order)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(1, inverse), None, None


def _define_operator() -> Callable[..., Tensor]:
    """Register :meth:`WindowLayout.to_map` as an operator for torch.compile.

    Inductor of torch 2.11 cannot order the strides of a view at unknown sizes, which it has to
    where the map is kept for the backward pass. What an operator returns is no view.
    """

    @torch.library.custom_op('contnet_mm::to_map', mutates_args=())
    def to_map(
        tokens: Tensor, inverse: Tensor, permutation: Tensor, height: int, width: int
    ) -> Tensor:
        tokens = tokens.index_select(1, inverse)
        return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)

    @to_map.register_fake
    def _(tokens, inverse, permutation, height, width):
        shape = (tokens.shape[0], height, width, tokens.shape[2])  # len() would fix the number
        return tokens.new_empty(shape).permute(0, 3, 1, 2)

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    def backward(ctx, grad):
        (permutation,) = ctx.saved_tensors
        grad = grad.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, permutation)
        return grad, None, None, None, None

    to_map.register_autograd(backward, setup_context=setup_context)
    return to_map


if HAS_CUSTOM_OPS:
    _to_map = _define_operator()


def window_layout(
    height: int,
    width: int,
    window_sizes: Sequence[int],
    way: Way = Way.GROUPED,
    batch: int = 1,
    device: torch.device | str = 'cpu',
    is_traced: bool = False,
) -> WindowLayout:
    """Return the layout of maps of one size, from a cache where there is one.

    Args:
        height: Of the map in tokens.
        width: Of the map in tokens.
        window_sizes: A pair in any order, of which one divides the other.
        way: How attention is computed.
        batch: Number of images.
        device: Of the tensors.
        is_traced: Whether a compiler or tracer records what is computed. A layout that a tracer
            sees is made anew, since its tensors become constants of the traced program.
    """
    # Under torch.jit.trace sizes are tensors.
    height, width, batch = int(height), int(width), int(batch)
    sizes = (int(max(window_sizes)), int(min(window_sizes)))
    if way not in (Way.CUMULATIVE, Way.PADDED):
        batch = 1  # of no consequence
    key = (height, width, sizes, way, batch, torch.device(device), is_traced)
    with torch.inference_mode(False):  # what inference asks for first may serve training later
        return _cache.get(key) if _may_be_kept(way) else _make_layout(*key)


def _may_be_kept(way: Way) -> bool:
    """Tell whether tensors made now outlive what asks for them."""
    if (
        way is Way.TRACED or torch.jit.is_tracing() or torch.empty(0).__class__ is not Tensor
    ):  # FakeTensorMode
        return False
    return not is_in_functorch()


class _Cache:
    """Layouts, the least recently used ones given up beyond ``CACHE_BYTES`` per device."""

    def __init__(self) -> None:
        self._layouts: OrderedDict[tuple, tuple[WindowLayout, int]] = OrderedDict()
        self._bytes: dict[torch.device, int] = {}
        self._lock = threading.Lock()

    def get(self, key: tuple) -> WindowLayout:
        """Return a layout by the arguments of :func:`_make_layout`."""
        with self._lock:
            if key in self._layouts:
                self._layouts.move_to_end(key)
                return self._layouts[key][0]
        layout = _make_layout(*key)
        size, device = count_bytes(layout), key[5]
        with self._lock:
            if key not in self._layouts:
                self._layouts[key] = layout, size
                self._bytes[device] = self._bytes.get(device, 0) + size
                self._give_up(device, key)
        return layout

    def _give_up(self, device: torch.device, newest: tuple) -> None:
        for key in [key for key in self._layouts if key[5] == device and key != newest]:
            if self._bytes[device] <= CACHE_BYTES:
                return
            self._bytes[device] -= self._layouts.pop(key)[1]

    def clear(self) -> None:
        """Forget all layouts."""
        with self._lock:
            self._layouts.clear()
            self._bytes.clear()

    def bytes_on(self, device: torch.device) -> int:
        """Return how many bytes are kept on a device."""
        return self._bytes.get(device, 0)


_cache = _Cache()


def count_bytes(layout: WindowLayout) -> int:
    """Return the bytes of a layout's tensors."""
    tensors = [layout.permutation, layout.inverse, layout.map_height]
    for windows in layout.windows.values():
        tensors += [windows.position_index, *(windows.padding or ())]
        tensors += [run.cumulative_lengths for run in windows.runs]
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def _make_layout(
    height: int,
    width: int,
    sizes: tuple[int, int],
    way: Way,
    batch: int,
    device: torch.device,
    is_traced: bool,
) -> WindowLayout:
    """Make a layout by NumPy, which no tracer or compiler records, and copy it to the device."""

    def send(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=device.type == 'cuda')

    inverse = window_order(height, width, sizes)
    permutation = _invert(inverse)
    # One compiled program serves all sizes, so none of its inputs may be missing.
    is_identity = not is_traced and bool((inverse[:-1] < inverse[1:]).all())
    row, column = np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)
    windows = {}
    for size in dict.fromkeys(sizes):
        position_index = (row % size * size + column % size).reshape(-1)[permutation]
        rank = window_order(size, size, (size, min(sizes)))
        lengths = _window_lengths(height, width, sizes, size)
        more: dict = {}
        if way in (Way.GROUPED, Way.OPERATOR):
            groups = _window_groups(height, width, sizes, size)
            more['groups'] = tuple(
                group._replace(rank=_rank_in_whole(group, rank[position_index], size))
                for group in groups
            )
        elif way is Way.CUMULATIVE:
            more['runs'] = _window_runs(np.tile(lengths, batch), send)
        elif is_traced and way is Way.PADDED or (lengths != size * size).any():
            repeats = batch if way is Way.PADDED else 1
            more['padding'] = _pad_windows(lengths, rank[position_index], size, repeats, send)
        windows[size] = Windows(send(position_index), **more)
    order = (None, None) if is_identity else (send(permutation), send(inverse))
    return WindowLayout(sizes, way, is_traced, *order, torch.tensor(height), windows)


def window_order(height: int, width: int, sizes: tuple[int, ...]) -> np.ndarray:
    """Tell where each token of a map stands in the order of its windows.

    Args:
        height: Of the map in tokens.
        width: Of the map in tokens.
        sizes: Window sizes, the outer one first; each divides the one before.

    Returns:
        The place of each token, row by row, [H * W] in int32: outer windows by shape (whole ones,
        those at the right border, at the bottom, in the corner), inside each of them inner windows
        likewise, inside each of these row by row.
    """
    row, column = np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)
    height, width = np.int32(height), np.int32(width)
    place = np.int32(0)
    for size in map(np.int32, sizes):
        rows, columns = height // size, width // size  # of whole windows
        in_rest = row >= rows * size
        # Windows of one height are a band: those of whole height, then those of the rest.
        bands = np.where(in_rest, 1, rows)
        window_row = np.where(in_rest, 0, row // size)
        window_height = np.where(in_rest, height - rows * size, size)
        window_width = np.where(column >= columns * size, width - columns * size, size)
        whole = (window_row * columns + column // size) * size
        rest = bands * columns * size + window_row * window_width
        place = place + np.where(in_rest, rows * size * width, 0)
        place = place + window_height * np.where(column >= columns * size, rest, whole)
        row, column, height, width = row % size, column % size, window_height, window_width
    return np.ascontiguousarray((place + row * width + column).reshape(-1), dtype=np.int32)


def _invert(order: np.ndarray) -> np.ndarray:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order), dtype=order.dtype)
    return inverse


def _partition(height: int, width: int, size: int) -> list[tuple[int, int, int]]:
    """Partition a map: count, height and width of the windows of each shape, in their order."""

    def bands(length: int) -> list[tuple[int, int]]:
        return [b for b in ((length // size, size), (1, length % size)) if all(b)]

    return [(m * n, h, w) for m, h in bands(height) for n, w in bands(width)]


def _window_groups(height: int, width: int, sizes: tuple[int, int], size: int) -> list[WindowGroup]:
    groups, start = [], 0
    for count, outer_height, outer_width in _partition(height, width, sizes[0]):
        stride, offset = outer_height * outer_width, 0
        for repeats, h, w in _partition(outer_height, outer_width, size):
            groups.append(WindowGroup(start, count, stride, offset, repeats, h, w, rank=None))
            offset += repeats * h * w
        start += count * stride
    return groups


def _window_lengths(height: int, width: int, sizes: tuple[int, int], size: int) -> np.ndarray:
    """Return the number of tokens of each window, in their order."""
    lengths = []
    for count, outer_height, outer_width in _partition(height, width, sizes[0]):
        inner = _partition(outer_height, outer_width, size)
        areas, repeats = [h * w for _, h, w in inner], [n for n, *_ in inner]
        lengths.append(np.tile(np.repeat(areas, repeats), count))
    return np.concatenate(lengths)


def _window_runs(lengths: np.ndarray, send: Send) -> tuple:
    runs = []
    for first in range(0, len(lengths), MAX_WINDOWS):
        ends = np.cumsum(lengths[first : first + MAX_WINDOWS], dtype=np.int32)
        cumulative_lengths = send(np.concatenate([np.zeros(1, np.int32), ends]))
        runs.append(WindowRun(int(ends[-1]), cumulative_lengths))
    return tuple(runs)


def _rank_in_whole(group: WindowGroup, rank: np.ndarray, size: int) -> np.ndarray | None:
    area = group.height * group.width
    first = group.start + group.offset
    return None if area == size * size else rank[first : first + area].astype(np.int64)


def _pad_windows(
    lengths: np.ndarray, rank: np.ndarray, size: int, batch: int, send: Send
) -> Padding:
    whole, number = size * size, len(lengths)
    place = np.repeat(np.arange(number, dtype=np.int32), lengths) * whole + rank
    index = np.repeat((np.cumsum(lengths) - lengths).astype(np.int32), whole)
    mask = np.full(number * whole, -np.inf, np.float32)
    index[place] = np.arange(len(place), dtype=np.int32)
    mask[place] = 0
    mask = np.tile(mask.reshape(number, 1, 1, whole), (batch, 1, 1, 1))
    # One copy to the device.
    both = send(np.concatenate([index, place], dtype=np.int32))
    return Padding(*both.split([len(index), len(place)]), send(mask))
