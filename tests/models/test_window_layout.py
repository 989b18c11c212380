"""Layouts: where tokens go, what is said about their windows, and which layouts are kept."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.utils._python_dispatch import TorchDispatchMode

from contnet_mm.models import window_layout as module
from contnet_mm.models.window_layout import (
    HAS_CUSTOM_OPS,
    Way,
    count_bytes,
    join_groups,
    window_layout,
    window_permutation,
)

SIZES = st.sampled_from([(14, 7), (7, 7), (4, 2), (6, 2), (5, 5)])
LENGTHS = st.integers(1, 45)
CPU, META = torch.device('cpu'), torch.device('meta')
ODD = (9, 11)  # whole windows of 4 and all kinds of border


def plain_windows(grid, size):
    """List the windows of a map by shape: whole ones, right border, bottom, corner."""
    tops, lefts = (range(0, length, size) for length in grid.shape)
    windows = [grid[top : top + size, left : left + size] for top in tops for left in lefts]
    return sorted(windows, key=lambda w: (w.shape[0] < size, w.shape[1] < size))


def plain_order(grid, sizes):
    """List the tokens of a map window by window."""
    if not sizes:
        return grid.flatten().tolist()
    return [x for w in plain_windows(grid, sizes[0]) for x in plain_order(w, sizes[1:])]


def grid_of(height, width):
    return torch.arange(height * width).view(height, width)


def order_of(layout):
    if layout.permutation is None:
        windows = next(iter(layout.windows.values()))
        return torch.arange(len(windows.position_index))
    return layout.permutation.long()


def windows_in_order(height, width, sizes, size):
    """List the windows of one of two nested sizes, each as the tokens of the map it has."""
    return [
        inner.flatten()
        for outer in plain_windows(grid_of(height, width), sizes[0])
        for inner in plain_windows(outer, size)
    ]


def rank_in_whole(sizes, size):
    """Tell where each token of a whole window, row by row, stands in its order."""
    return torch.tensor(plain_order(grid_of(size, size), [size, sizes[1]])).argsort()


@settings(deadline=None, max_examples=50)
@given(LENGTHS, LENGTHS, SIZES)
def test_each_token_has_one_place_in_the_order(height, width, sizes):
    permutation = window_permutation(height, width, sizes)
    assert permutation.dtype == np.int32
    assert sorted(permutation.tolist()) == [*range(height * width)]


@settings(deadline=None, max_examples=50)
@given(LENGTHS, LENGTHS, SIZES)
def test_each_window_is_one_run_of_tokens_and_so_are_those_nested_in_it(height, width, sizes):
    order = order_of(window_layout(height, width, sizes))
    assert order.tolist() == plain_order(grid_of(height, width), sizes)
    for size in sizes:
        runs = order.split([len(w) for w in windows_in_order(height, width, sizes, size)])
        for run, window in zip(runs, windows_in_order(height, width, sizes, size), strict=True):
            assert torch.equal(run.sort().values, window)


def test_small_windows_are_runs_inside_a_large_one():
    order = order_of(window_layout(4, 4, (4, 2)))
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_whole_windows_come_before_those_of_the_border():
    layout = window_layout(3, 3, (2, 2))
    assert order_of(layout).tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    shapes = [(group.height, group.width) for group in layout.windows[2].groups]
    assert shapes == [(2, 2), (2, 1), (1, 2), (1, 1)]


@settings(deadline=None)
@given(LENGTHS, LENGTHS, SIZES)
def test_nothing_moves_exactly_where_the_two_orders_are_the_same(height, width, sizes):
    layout = window_layout(height, width, sizes)
    is_identity = plain_order(grid_of(height, width), sizes) == [*range(height * width)]
    assert (layout.permutation is None) == is_identity
    assert (layout.inverse is None) == is_identity
    if not is_identity:
        assert torch.equal(layout.inverse.long(), order_of(layout).argsort())


def test_a_compiler_gets_an_order_even_if_nothing_moves():
    # One graph serves all sizes, so that no input of it may be missing.
    layout = window_layout(*(4, 4), (4, 4), Way.PADDED, is_traced=True)
    assert torch.equal(order_of(layout), torch.arange(16)) and layout.permutation is not None
    assert layout.windows[4].padding is not None


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2), LENGTHS, LENGTHS, SIZES, st.booleans(), st.booleans())
def test_maps_go_into_the_order_of_windows_and_back(
    batch, height, width, sizes, is_channels_last, is_traced
):
    layout = window_layout(height, width, sizes, is_traced=is_traced)
    memory = torch.channels_last if is_channels_last else torch.contiguous_format
    x = torch.randn(batch, 3, height, width).contiguous(memory_format=memory)
    tokens = layout.to_windows(x)
    assert torch.equal(tokens, x.flatten(2).transpose(1, 2)[:, order_of(layout)])
    back = layout.to_map(tokens, height, width)
    assert torch.equal(back, x)
    if is_channels_last:
        assert back.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not HAS_CUSTOM_OPS, reason='this torch has no operators of its users')
@pytest.mark.parametrize('is_contiguous', [False, True])
@pytest.mark.parametrize('size', [(9, 11), (9, 2), (4, 4)], ids=str)
def test_the_operator_to_maps_keeps_its_promises_to_a_compiler(size, is_contiguous):
    layout = window_layout(*size, (4, 2), Way.OPERATOR, is_traced=True)
    tokens = torch.randn(2, size[0] * size[1], 3, dtype=torch.float64)
    if not is_contiguous:
        tokens = tokens.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    tokens.requires_grad_()
    args = tokens, layout.inverse, layout.permutation, *size
    torch.library.opcheck(torch.ops.contnet_mm.to_map.default, args)
    expected = window_layout(*size, (4, 2)).to_map(tokens, *size)
    assert torch.equal(layout.to_map(tokens, *size), expected)
    grad = torch.randn_like(expected)
    found = torch.autograd.grad(layout.to_map(tokens, *size), tokens, grad)
    assert torch.equal(found[0], torch.autograd.grad(expected, tokens, grad)[0])


def reorder(layout, x):
    return layout.select(x, layout.permutation, layout.inverse)


@pytest.mark.parametrize('is_traced', [False, True])
def test_the_gradient_of_reordering_is_reordered_back(is_traced):
    layout = window_layout(5, 9, (4, 2), is_traced=is_traced)
    x = torch.randn(2, 45, 2, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    (found,) = torch.autograd.grad(reorder(layout, x), x, grad)
    assert torch.equal(found, grad[:, layout.inverse])
    forward = not is_traced  # a compiled network has no forward-mode derivatives
    assert torch.autograd.gradcheck(lambda x: reorder(layout, x), x, check_forward_ad=forward)
    assert torch.autograd.gradgradcheck(lambda x: reorder(layout, x), x)


WITHOUT_WORK = ('detach', 'is_same_size')


def test_the_gradient_of_reordering_is_one_selection():
    # The gradient of plain indexing is added to zeros, which takes three times the memory traffic.
    layout, called = window_layout(5, 9, (4, 2)), []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function._overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    x = torch.randn(2, 45, 2, requires_grad=True)
    out, grad = reorder(layout, x), torch.randn(2, 45, 2)
    with Recorder():
        torch.autograd.grad(out, x, grad)
    assert [name for name in called if name not in WITHOUT_WORK] == ['index_select']


def test_a_tensor_that_is_reordered_twice_gets_both_gradients():
    layout = window_layout(5, 9, (4, 2))
    x, a, b = torch.randn(3, 2, 45, 2)
    x.requires_grad_()
    inverse = layout.inverse
    back = layout.select(x, inverse, layout.permutation)
    (a * reorder(layout, x) + b * back).sum().backward()
    torch.testing.assert_close(x.grad, a[:, inverse] + b[:, layout.permutation])


def test_reordering_has_tangents_and_can_be_mapped_over_samples():
    layout = window_layout(5, 9, (4, 2))
    x, tangent = torch.randn(2, 3, 2, 45, 2)
    expected = torch.stack([reorder(layout, part) for part in x])
    assert torch.equal(torch.func.vmap(lambda x: reorder(layout, x))(x), expected)
    with dual_level():
        out = unpack_dual(reorder(layout, make_dual(x[0], tangent[0])))
    assert torch.equal(out.tangent, reorder(layout, tangent[0]))


@settings(deadline=None, max_examples=50)
@given(LENGTHS, LENGTHS, SIZES, st.sampled_from([*Way]))
def test_position_indices_name_the_row_and_the_column_of_each_token(height, width, sizes, way):
    layout = window_layout(height, width, sizes, way)
    row, column = order_of(layout) // width, order_of(layout) % width
    assert set(layout.windows) == set(sizes)
    for size, windows in layout.windows.items():
        index = windows.position_index.long()
        assert torch.equal(index // size, row % size)
        assert torch.equal(index % size, column % size)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2), LENGTHS, LENGTHS, SIZES)
def test_groups_show_each_window_once_with_those_of_equal_shape(batch, height, width, sizes):
    layout = window_layout(height, width, sizes)
    images = torch.arange(batch)[:, None] * height * width
    tokens = (images + order_of(layout))[..., None]
    for size, windows in layout.windows.items():
        seen = []
        for group in windows.groups:
            part = group.of(tokens)
            area = group.height * group.width
            assert part.shape == (batch, group.count, group.repeats, area, 1)
            assert part.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr()
            for window in part.reshape(-1, area):
                row, column = window % (height * width) // width, window % width
                assert (row.min() % size, column.min() % size) == (0, 0)
                assert row.max() - row.min() + 1 == group.height
                assert column.max() - column.min() + 1 == group.width
                seen += window.tolist()
        assert sorted(seen) == [*range(batch * height * width)]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2), LENGTHS, LENGTHS, SIZES)
def test_what_groups_take_apart_is_joined_in_the_same_order(batch, height, width, sizes):
    tokens = torch.randn(batch, height * width, 3)
    for windows in window_layout(height, width, sizes).windows.values():
        parts = [group.of(tokens) for group in windows.groups]
        assert torch.equal(join_groups(parts, windows.groups), tokens)


@settings(deadline=None, max_examples=50)
@given(LENGTHS, LENGTHS, SIZES)
def test_tokens_at_the_border_know_their_rank_in_a_whole_window(height, width, sizes):
    layout = window_layout(height, width, sizes)
    for size, windows in layout.windows.items():
        for group in windows.groups:
            is_whole = group.height == group.width == size
            assert (group.rank is None) == is_whole
            if is_whole:
                continue
            position = group.of(windows.position_index[None, :, None])[..., 0]
            expected = rank_in_whole(sizes, size)[position.long()]
            # No tensor, which torch.func would bind to one of its levels.
            assert isinstance(group.rank, np.ndarray)
            assert torch.equal(torch.from_numpy(group.rank).expand_as(expected), expected)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 3), LENGTHS, LENGTHS, SIZES, st.sampled_from([Way.PADDED, Way.TRACED]))
def test_padded_windows_hold_each_token_at_its_rank_and_mask_the_rest(
    batch, height, width, sizes, way
):
    layout = window_layout(height, width, sizes, way, batch)
    for size, windows in layout.windows.items():
        expected = windows_in_order(height, width, sizes, size)
        padding, area = windows.padding, size * size
        is_whole = all(len(window) == area for window in expected)
        assert (padding is None) == is_whole
        if is_whole:
            continue
        order = order_of(layout)
        rank = rank_in_whole(sizes, size)
        for i, window in enumerate(expected):
            # Which token of the window stands at each rank of a whole one.
            position = window // width % size * size + window % width % size
            inside = torch.zeros(area, dtype=torch.bool)
            inside[rank[position]] = True
            index = order[padding.index[i * area : (i + 1) * area].long()]
            assert torch.equal(index[rank[position]], window)
            assert set(index.tolist()) == set(window.tolist())  # never a token of another window
            if batch:
                mask = padding.mask[i, 0, 0]
                assert torch.equal(mask == 0, inside)
                assert torch.equal(mask == -torch.inf, ~inside)
        assert torch.equal(padding.index[padding.inverse].long(), torch.arange(height * width))
        images = batch if way is Way.PADDED else 1
        assert padding.mask.shape == (images * len(expected), 1, 1, area)
        per_image = padding.mask.view(images, len(expected), area)
        assert all(torch.equal(mask, per_image[0]) for mask in per_image)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3), LENGTHS, LENGTHS, SIZES, st.sampled_from([1, 3, 65535]))
def test_cumulative_lengths_are_those_of_the_windows_of_all_images(
    batch, height, width, sizes, most
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, '_cache', module._Cache())
        patch.setattr(module, 'MAX_WINDOWS', most)
        layout = window_layout(height, width, sizes, Way.CUMULATIVE, batch)
    for size, windows in layout.windows.items():
        lengths = [len(window) for window in windows_in_order(height, width, sizes, size)] * batch
        found = []
        for run in windows.runs:
            assert run.cumulative_lengths.dtype == torch.int32
            ends = run.cumulative_lengths.tolist()
            assert (ends[0], ends[-1]) == (0, run.num_tokens)
            found.append([b - a for a, b in pairwise(ends)])
        assert sum(found, []) == lengths
        assert [len(run) for run in found[:-1]] == [most] * (len(found) - 1)
        assert 0 < len(found[-1]) <= most


def test_windows_on_a_grid_axis_of_cuda_are_at_most_65535():
    layout = window_layout(300, 300, (1, 1), Way.CUMULATIVE)
    assert [run.num_tokens for run in layout.windows[1].runs] == [65535, 90000 - 65535]


@pytest.fixture
def cache(monkeypatch):
    """An empty cache in place of the one in use."""
    monkeypatch.setattr(module, '_cache', module._Cache())
    return module._cache


def test_a_layout_is_made_once(cache):
    layout = window_layout(*ODD, (4, 2), Way.PADDED, 2)
    assert window_layout(*ODD, [2, 4], Way.PADDED, 2, 'cpu') is layout
    sizes = torch.tensor(ODD)  # as they are under torch.jit.trace
    assert window_layout(*sizes, (4, 2), Way.PADDED, torch.tensor(2), CPU) is layout


@pytest.mark.parametrize(
    'other',
    [
        dict(height=10),
        dict(width=10),
        dict(window_sizes=(6, 2)),
        dict(way=Way.CUMULATIVE),
        dict(batch=3),
        dict(device='meta'),
        dict(is_traced=True),
    ],
    ids=str,
)
def test_another_question_gets_another_layout(cache, other):
    question = dict(height=9, width=11, window_sizes=(4, 2), way=Way.PADDED, batch=2)
    assert window_layout(**question) is not window_layout(**question | other)


@pytest.mark.parametrize('way', [Way.GROUPED, Way.OPERATOR])
def test_windows_by_shape_are_the_same_for_all_batches(cache, way):
    assert window_layout(*ODD, (4, 2), way, 2) is window_layout(*ODD, (4, 2), way, 3)


def test_the_least_recently_used_layout_is_given_up(cache, monkeypatch):
    first = window_layout(10, 10, (4, 2))
    monkeypatch.setattr(module, 'CACHE_BYTES', 2 * count_bytes(first))
    second = window_layout(10, 9, (4, 2))
    assert window_layout(10, 10, (4, 2)) is first  # used once more
    window_layout(9, 10, (4, 2))
    assert window_layout(10, 10, (4, 2)) is first
    assert window_layout(10, 9, (4, 2)) is not second


def test_kept_layouts_are_bounded_on_each_device(cache, monkeypatch):
    here = window_layout(*ODD, (4, 2), Way.PADDED)
    monkeypatch.setattr(module, 'CACHE_BYTES', 300_000)
    for height in range(20, 60):
        layout = window_layout(height, 30, (14, 7), Way.PADDED, 1, META)
        kept = [x for x, _ in cache._layouts.values() if x is not here]
        assert layout in kept
        assert cache.bytes_on(META) == sum(map(count_bytes, kept)) <= 300_000
    assert 1 < len(kept) < 40
    assert window_layout(*ODD, (4, 2), Way.PADDED) is here


@pytest.mark.parametrize('way', [*Way])
def test_the_bytes_of_a_layout_are_those_of_all_its_tensors(way):
    def tensors(x):
        if torch.is_tensor(x):
            return [x]
        parts = x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else ()
        parts = vars(x).values() if hasattr(x, '__dataclass_fields__') else parts
        return [tensor for part in parts for tensor in tensors(part)]

    layout = window_layout(*ODD, (4, 2), way, 2)
    expected = sum(x.numel() * x.element_size() for x in tensors(layout))
    assert count_bytes(layout) == expected > 0


def test_a_layout_of_a_traced_program_is_not_kept(cache):
    for way, is_traced in ((Way.TRACED, False), (Way.TRACED, True)):
        one, two = (window_layout(*ODD, (4, 2), way, is_traced=is_traced) for _ in range(2))
        assert one is not two
    assert not cache._layouts


def test_a_layout_of_tensors_without_values_is_not_kept(cache):
    with FakeTensorMode():
        fake = window_layout(*ODD, (4, 2))
    assert type(fake.permutation) is not torch.Tensor
    assert not cache._layouts
    assert type(window_layout(*ODD, (4, 2)).permutation) is torch.Tensor


@pytest.mark.parametrize('transform', [torch.func.vmap, torch.func.grad], ids=['vmap', 'grad'])
def test_a_layout_made_inside_a_function_transform_is_not_kept(cache, transform):
    def total(x):
        return reorder(window_layout(*ODD, (4, 2)), x).square().sum()

    x = torch.randn(2, 99, 3) if transform is torch.func.grad else torch.randn(3, 2, 99, 3)
    found = transform(total)(x)
    expected = 2 * x if transform is torch.func.grad else x.square().sum((1, 2, 3))
    torch.testing.assert_close(found, expected)
    assert not cache._layouts


@pytest.mark.parametrize('first', [torch.inference_mode, torch.enable_grad])
def test_a_layout_that_inference_asked_for_serves_training(cache, first):
    with first():
        layout = window_layout(*ODD, (4, 2))
    assert window_layout(*ODD, (4, 2)) is layout
    x = torch.randn(1, 99, 3, requires_grad=True)
    reorder(layout, x).sum().backward()  # saves the order, which inference tensors forbid
    assert torch.equal(x.grad, torch.ones_like(x))


def test_threads_may_ask_at_the_same_time(cache, monkeypatch):
    sizes = [(height, width) for height in range(10, 16) for width in range(10, 14)]
    monkeypatch.setattr(module, 'CACHE_BYTES', 20_000)  # a few of them

    def ask(seed):
        generator = random.Random(seed)
        for _ in range(100):
            height, width = generator.choice(sizes)
            layout = window_layout(height, width, (4, 2))
            assert layout.inverse.shape == (height * width,) and layout.map_height == height
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    kept = [layout for layout, _ in cache._layouts.values()]
    assert cache.bytes_on(CPU) == sum(map(count_bytes, kept)) <= 20_000
    shapes = {(layout.map_height.item(), len(layout.inverse)) for layout in kept}
    assert len(shapes) == len(kept)
