"""Windows: how maps are cut, where their tokens go, and functions over windows of one shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contnet_mm import windows as windows_module
from contnet_mm.windows import (
    Windows,
    area,
    cut,
    map_windows,
    places,
    reorder,
    token_order,
    window_order,
)

SIDES = st.sampled_from([(14, 7), (7, 7), (4, 2), (6, 2), (5, 5)])
LENGTHS = st.integers(1, 45)
CPU = torch.device('cpu')


def runs(tokens, windows):
    """Split tokens, [T], into those of each window."""
    parts = iter(tokens.split([area(w) for w in windows for _ in range(w.count)]))
    return [(w, next(parts)) for w in windows for _ in range(w.count)]


@settings(deadline=None)
@given(st.integers(0, 3), LENGTHS, LENGTHS, st.integers(1, 15))
def test_windows_have_as_many_tokens_as_the_maps(count, height, width, side):
    windows = cut(height, width, side, count=count)
    assert sum(w.count * area(w) for w in windows) == count * height * width
    assert all(1 <= w.height <= side and 1 <= w.width <= side for w in windows)
    if count:
        assert sum(w.count for w in windows) == count * -(-height // side) * -(-width // side)
        # Functions are called once per shape.
        assert len({(w.height, w.width) for w in windows}) == len(windows) <= 4


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3), LENGTHS, LENGTHS, SIDES)
def test_each_token_has_one_place_in_the_order(batch, height, width, sides):
    maps = torch.arange(batch * height * width).view(batch, height, width)
    order = token_order(maps, sides)
    assert torch.equal(order.sort().values, maps.flatten())


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3), LENGTHS, LENGTHS, SIDES)
def test_each_window_is_one_run_of_tokens_and_so_are_those_nested_in_it(
    batch, height, width, sides
):
    outer, inner = sides
    maps = torch.arange(batch * height * width).view(batch, height, width)
    seen = set()
    for window, run in runs(token_order(maps, sides), cut(height, width, outer, count=batch)):
        image, place = run[0] // (height * width), run[0] % (height * width)
        top, left = int(place // width), int(place % width)
        assert top % outer == left % outer == 0
        whole = maps[image, top : top + outer, left : left + outer]
        assert whole.shape == (window.height, window.width)
        assert torch.equal(run.sort().values, whole.flatten())
        seen.add((int(image), top, left))
        begin = 0
        for piece in cut(window.height, window.width, inner):
            for _ in range(piece.count):
                nested = run[begin : begin + area(piece)]
                top, left = ((nested[0] % (height * width)) // width, nested[0] % width)
                part = maps[image, top : top + piece.height, left : left + piece.width]
                assert torch.equal(nested, part.flatten())  # row by row
                begin += area(piece)
    assert len(seen) == batch * -(-height // outer) * -(-width // outer)


def test_small_windows_are_runs_inside_a_large_one():
    order = token_order(torch.arange(16).view(1, 4, 4), (4, 2))
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_whole_windows_come_before_those_of_the_border():
    order = token_order(torch.arange(9).view(1, 3, 3), (2, 2))
    assert order.tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    assert cut(3, 3, 2) == [Windows(1, 2, 2), Windows(1, 2, 1), Windows(1, 1, 2), Windows(1, 1, 1)]


@settings(deadline=None)
@given(st.integers(1, 3), LENGTHS, LENGTHS, SIDES)
def test_nothing_moves_exactly_where_the_two_orders_are_the_same(batch, height, width, sides):
    maps = torch.arange(batch * height * width).view(batch, height, width)
    order = token_order(maps, sides)
    found = window_order(batch, height, width, sides, CPU)
    if found is None:
        assert torch.equal(order, maps.flatten())
        return
    assert torch.equal(found[0], order)
    assert torch.equal(found[0][found[1]], maps.flatten())
    # A map of one row may be moved for nothing: it has but a few tokens.
    assert height == 1 or not torch.equal(order, maps.flatten())


@pytest.mark.parametrize('first', [torch.inference_mode, torch.enable_grad])
def test_an_order_that_inference_asked_for_serves_training(first):
    windows_module._kept_order.cache_clear()
    with first():
        window_order(2, 9, 10, (4, 2), CPU)
    order = window_order(2, 9, 10, (4, 2), CPU)
    x = torch.randn(180, 3, requires_grad=True)
    reorder(x, *order).sum().backward()  # saves the order, which inference tensors forbid
    assert torch.equal(x.grad, torch.ones_like(x))


def test_an_empty_batch_has_an_empty_order():
    assert token_order(torch.zeros(0, 20, 30), (14, 7)).shape == (0,)
    assert sum(w.count * area(w) for w in cut(20, 30, 14, count=0)) == 0
    order = window_order(0, 20, 30, (14, 7), CPU)
    assert reorder(torch.zeros(0, 8), *order).shape == (0, 8)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 2), st.integers(2, 30), st.integers(8, 30), SIDES)
def test_reordering_back_undoes_it(batch, height, width, sides):
    order, inverse = window_order(batch, height, width, sides, CPU)
    x = torch.randn(batch * height * width, 2)
    moved = reorder(x, order, inverse)
    assert torch.equal(
        moved, x[token_order(torch.arange(len(x)).view(batch, height, width), sides)]
    )
    assert torch.equal(reorder(moved, inverse, order), x)


def test_the_gradient_of_reordering_is_reordered_back():
    order, inverse = window_order(2, 5, 9, (4, 2), CPU)
    x = torch.randn(90, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(reorder, (x, order, inverse))
    assert torch.autograd.gradgradcheck(reorder, (x, order, inverse))


def test_a_tensor_that_is_reordered_twice_gets_both_gradients():
    order, inverse = window_order(1, 5, 9, (4, 2), CPU)
    x, a, b = torch.randn(3, 45, 2)
    x.requires_grad_()
    (a * reorder(x, order, inverse) + b * reorder(x, inverse, order)).sum().backward()
    torch.testing.assert_close(x.grad, a[inverse] + b[order])


@settings(deadline=None, max_examples=50)
@given(SIDES, st.data())
def test_places_name_the_row_and_the_column_of_each_token(sides, data):
    outer, inner = sides
    height, width = (data.draw(st.integers(1, outer)) for _ in range(2))
    grid = torch.arange(height * width).view(1, height, width)
    order = token_order(grid, [inner])
    place = places(outer, height, width, inner, CPU)
    assert torch.equal(place // outer, order // width)
    assert torch.equal(place % outer, order % width)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 3), LENGTHS, LENGTHS, SIDES, st.booleans())
def test_a_function_sees_each_window_of_a_side_once(batch, height, width, sides, nested):
    side = sides[1] if nested else sides[0]
    order = token_order(torch.arange(batch * height * width).view(batch, height, width), sides)
    seen = []

    def double(part, group):
        assert part.shape == (group.count, area(group), 1)
        for window in part[..., 0]:
            rows, columns = window % (height * width) // width, window % width
            assert rows.max() - rows.min() + 1 == group.height
            assert columns.max() - columns.min() + 1 == group.width
            assert (rows.min() % side, columns.min() % side) == (0, 0)
            seen.extend(window.tolist())
        return torch.cat([part, 2 * part], dim=-1)

    windows = cut(height, width, sides[0], count=batch)
    out = map_windows(double, order[:, None], windows, side)
    assert sorted(seen) == list(range(len(order)))
    assert torch.equal(out, torch.stack([order, 2 * order], dim=1))
