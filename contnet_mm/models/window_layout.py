"""The partition of a map into windows, as a permutation of its tokens.

Windows at the bottom and right border are as small as the map makes them; nothing is padded, so
no token is computed that does not exist. The two window sizes of a block nest: once permuted, the
tokens of each outer window are contiguous, and so are those of each inner window inside it. Both
encoders of a block therefore share one permutation. Shapes: B images, H x W map, L = H * W tokens
of an image, C channels, P = window_size ** 2 tokens of a whole window.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product
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
Send = Callable[[np.ndarray], Tensor]  # copies an array to a device


class Way(Enum):
    """How attention inside windows is computed; see :mod:`~contnet_mm.models.window_attention`."""

    CUMULATIVE = 'one kernel call for windows of all shapes, given their cumulative lengths'
    PADDED = 'windows padded to whole ones, one masked scaled_dot_product_attention'
    GROUPED = 'plain products, one group of windows of equal shape after the other'
    OPERATOR = 'GROUPED behind a custom operator, for torch.compile on a CPU'
    TRACED = 'windows padded to whole ones, plain products, for torch.export'
    FUSED = 'the same for torch.compile, which fuses them; faster where all windows are whole'


class WindowGroup(NamedTuple):
    """Windows of one shape: ``repeats`` of them in each of ``count`` outer windows.

    Args:
        start: First token of the first outer window.
        count: Number of outer windows.
        stride: Tokens of an outer window.
        offset: First token of these windows in an outer window.
        repeats: Windows in an outer window.
        height: Height of a window in tokens.
        width: Width of a window in tokens.
        rank: Index of these tokens in a whole window, [height * width]; None if this window is
            whole. An array, since torch.func would bind a tensor to one of its levels.
    """

    start: int
    count: int
    stride: int
    offset: int
    repeats: int
    height: int
    width: int
    rank: np.ndarray | None = None

    def of(self, tokens: Tensor) -> Tensor:
        """View the tokens of these windows, [B, L, *] -> [B, count, repeats, height * width, *]."""
        area = self.height * self.width
        outer = tokens[:, self.start : self.start + self.count * self.stride]
        outer = outer.unflatten(1, (self.count, self.stride))
        inner = outer[:, :, self.offset : self.offset + self.repeats * area]
        return inner.unflatten(2, (self.repeats, area))


def join_groups(parts: Sequence[Tensor], groups: Sequence[WindowGroup]) -> Tensor:
    """Concatenate what :meth:`WindowGroup.of` views of all groups of a map, to [B, L, C]."""
    runs: dict[int, list[Tensor]] = {}
    for part, group in zip(parts, groups, strict=True):
        runs.setdefault(group.start, []).append(part.flatten(2, 3))
    return concatenate([concatenate(run, 2).flatten(1, 2) for run in runs.values()], 1)


def concatenate(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate tensors; a single one is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


class WindowRun(NamedTuple):
    """As many windows, of any shapes, as a kernel takes at once.

    Args:
        num_tokens: Number of their tokens.
        cumulative_lengths: First token of each window, and the end, [windows + 1] in int32.
    """

    num_tokens: int
    cumulative_lengths: Tensor


class Padding(NamedTuple):
    """How windows at the border are padded to whole ones.

    Args:
        index: Token at each position of each padded window, [windows * P]; any token of the window
            where there is none.
        inverse: Index of each token among those positions, [L].
        mask: What to add to the logits of each key: 0, or minus infinity where there is no token,
            [windows or B * windows, 1, 1, P].
    """

    index: Tensor
    inverse: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one size.

    Args:
        position_index: Row times window size plus column of each token in its window, [L].
        groups: Windows by shape, for ``Way.GROUPED`` alone.
        runs: Windows of all B images, for ``Way.CUMULATIVE`` alone.
        padding: For ``Way.PADDED``, ``TRACED`` and ``FUSED``; None where all windows are whole.
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
        permutation: Token of the map, counted row by row, at each index in window order, [L]; None
            if nothing moves.
        inverse: Index in window order of each token of the map, [L]; None likewise.
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
        """Bring a channels-last map into window order, [B, C, H, W] -> [B, L, C]."""
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)  # a view of a channels-last map
        if self.permutation is None:
            return tokens
        return self.select(tokens, self.permutation, self.inverse)

    def to_map(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Bring tokens back into a channels-last map, [B, L, C] -> [B, C, H, W]."""
        if self._is_compiled and HAS_CUSTOM_OPS:
            return _to_map(tokens, self.inverse, self.permutation, height, width)
        if self.permutation is not None:
            tokens = self.select(tokens, self.inverse, self.permutation)
        return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)

    def select(self, tokens: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        """Select tokens, [B, L, C] -> [B, len(index), C]; ``inverse`` selects their gradients."""
        if self.is_traced and not self._is_compiled:
            return tokens.index_select(1, index)
        return (_Select if self.is_traced else _TransformableSelect).apply(tokens, index, inverse)

    @property
    def _is_compiled(self) -> bool:
        """Whether it is torch.compile that records."""
        return self.is_traced and self.way not in (Way.GROUPED, Way.TRACED)


class _Select(torch.autograd.Function):
    """Selection of rows; being a permutation, its gradient selects as well instead of adding up."""

    @staticmethod
    def forward(tokens: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        return tokens.index_select(1, index)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, index, inverse = inputs
        ctx.save_for_backward(index, inverse)
        ctx.save_for_forward(index, inverse)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        _, inverse = ctx.saved_tensors
        return grad.index_select(1, inverse), None, None


class _TransformableSelect(_Select):
    """The same for torch.func and forward mode, with rules that torch.compile (2.11) refuses."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx, tangent: Tensor, *_) -> Tensor:
        index, _ = ctx.saved_tensors
        return tangent.index_select(1, index)


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
        height: Height of the map in tokens.
        width: Width of the map in tokens.
        window_sizes: A pair in any order, of which one divides the other.
        way: How attention is computed.
        batch: Number of images.
        device: Device of the tensors.
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
        return _cache.get(key) if _is_kept(way) else _make_layout(*key)


def _is_kept(way: Way) -> bool:
    """Tell whether tensors made now are valid outside what asks for them."""
    is_fake = torch.empty(0).__class__ is not Tensor  # under FakeTensorMode
    return not (way is Way.TRACED or torch.jit.is_tracing() or is_fake or is_in_functorch())


class _Cache:
    """Layouts; beyond ``CACHE_BYTES`` per device the least recently used ones are dropped."""

    def __init__(self) -> None:
        self._layouts: OrderedDict[tuple, tuple[WindowLayout, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple) -> WindowLayout:
        """Return a layout by the arguments of :func:`_make_layout`."""
        with self._lock:
            if key in self._layouts:
                self._layouts.move_to_end(key)
                return self._layouts[key][0]
        layout, device = _make_layout(*key), key[5]
        with self._lock:
            layout, _ = self._layouts.setdefault(key, (layout, count_bytes(layout)))
            excess = self.bytes_on(device) - CACHE_BYTES
            for other in [other for other in self._layouts if other[5] == device and other != key]:
                if excess <= 0:
                    break
                excess -= self._layouts.pop(other)[1]
        return layout

    def bytes_on(self, device: torch.device) -> int:
        """Return how many bytes are kept on a device."""
        return sum(size for key, (_, size) in self._layouts.items() if key[5] == device)


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

    permutation = window_permutation(height, width, sizes)
    inverse = np.empty_like(permutation)
    inverse[permutation] = np.arange(len(permutation), dtype=np.int32)
    row, column = np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)
    windows = {}
    for size in dict.fromkeys(sizes):
        position_index = (row % size * size + column % size).reshape(-1)[permutation]
        starts = np.flatnonzero(position_index == 0).astype(np.int32)  # first token of each window
        rank = np.argsort(window_permutation(size, size, (size, min(sizes)))).astype(np.int32)
        rank = rank[position_index]
        more: dict = {}
        if way is Way.GROUPED:
            more['groups'] = _window_groups(height, width, sizes, size, rank)
        elif way is Way.CUMULATIVE:
            more['runs'] = _window_runs(starts, len(rank), batch, send)
        elif way is Way.OPERATOR:
            pass  # it makes its own groups, of which the compiler shall know nothing
        elif is_traced and way is Way.PADDED or len(starts) * size**2 > len(rank):
            repeats = batch if way is Way.PADDED else 1
            more['padding'] = _pad_windows(starts, rank, size**2, repeats, send)
        windows[size] = Windows(send(position_index), **more)
    # One compiled program serves all sizes, so none of its inputs may be missing.
    moves = is_traced or bool((inverse[:-1] > inverse[1:]).any())
    dtype = np.int32 if HAS_CUSTOM_OPS else np.int64  # vmap of older torch takes no other
    order = [send(x.astype(dtype)) if moves else None for x in (permutation, inverse)]
    return WindowLayout(sizes, way, is_traced, *order, torch.tensor(height), windows)


def window_permutation(height: int, width: int, window_sizes: Sequence[int]) -> np.ndarray:
    """Return the tokens of a map, numbered row by row, in window order, [H * W] in int32.

    Window order is: outer windows by shape (whole ones, those at the right border, at the bottom,
    in the corner), inside each of them inner windows likewise, inside each of these row by row.
    The outer one of ``window_sizes`` comes first; each divides the one before.
    """

    def partition(maps: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
        """Put maps into window order, [n, h, w] -> [n, h * w]."""
        if not sizes:
            return maps.reshape(len(maps), -1)
        parts = []
        for (top, rows, h), (left, columns, w) in _shapes(*maps.shape[1:], sizes[0]):
            part = maps[:, top : top + rows * h, left : left + columns * w]
            windows = part.reshape(-1, rows, h, columns, w).swapaxes(2, 3).reshape(-1, h, w)
            parts.append(partition(windows, sizes[1:]).reshape(len(maps), -1))
        return np.concatenate(parts, axis=1)

    tokens = np.arange(height * width, dtype=np.int32).reshape(1, height, width)
    return partition(tokens, window_sizes)[0]


Band = tuple[int, int, int]  # start, number and length of the windows along an axis


def _shapes(height: int, width: int, size: int) -> Iterator[tuple[Band, Band]]:
    """Return the windows of each shape: whole ones, right border, bottom, corner."""

    def bands(length: int) -> list[Band]:
        rest = length % size
        return [b for b in ((0, length // size, size), (length - rest, 1, rest)) if all(b[1:])]

    return product(bands(height), bands(width))


def _window_groups(
    height: int, width: int, sizes: tuple[int, int], size: int, rank: np.ndarray
) -> tuple[WindowGroup, ...]:
    groups, start = [], 0
    for (_, m, outer_h), (_, n, outer_w) in _shapes(height, width, sizes[0]):
        stride, offset = outer_h * outer_w, 0
        for (_, rows, h), (_, columns, w) in _shapes(outer_h, outer_w, size):
            first, repeats = start + offset, rows * columns
            own = None if h == w == size else rank[first : first + h * w].astype(np.int64)
            groups.append(WindowGroup(start, m * n, stride, offset, repeats, h, w, own))
            offset += repeats * h * w
        start += m * n * stride
    return tuple(groups)


def _window_runs(starts: np.ndarray, length: int, batch: int, send: Send) -> tuple[WindowRun, ...]:
    images = np.arange(batch)[:, None] * length
    bounds = np.append(images + starts, batch * length)
    runs = []
    for first in range(0, len(bounds) - 1, MAX_WINDOWS):
        run = bounds[first : first + MAX_WINDOWS + 1]
        cumulative_lengths = (run - run[0]).astype(np.int32)
        runs.append(WindowRun(int(cumulative_lengths[-1]), send(cumulative_lengths)))
    return tuple(runs)


def _pad_windows(
    starts: np.ndarray, rank: np.ndarray, area: int, batch: int, send: Send
) -> Padding:
    lengths = np.diff(starts, append=len(rank))
    inverse = np.repeat(np.arange(len(starts), dtype=np.int32), lengths) * area + rank
    index = np.repeat(starts, area)
    mask = np.full(len(index), -np.inf, np.float32)
    index[inverse] = np.arange(len(rank), dtype=np.int32)
    mask[inverse] = 0
    mask = np.tile(mask.reshape(-1, 1, 1, area), (batch, 1, 1, 1))
    # One copy to the device.
    both = send(np.concatenate([index, inverse], dtype=np.int32))
    return Padding(*both.split([len(index), len(inverse)]), send(mask))
