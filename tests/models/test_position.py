"""Tables of positions: what they hold, for which token, and their gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from contnet_mm.models.position import AbsolutePosition, RelativePosition
from contnet_mm.models.window_layout import Way, window_layout, window_permutation

SIZES = st.sampled_from([(14, 7), (7, 7), (4, 2), (6, 2), (5, 5)])


def absolute(channels, window_size):
    position = AbsolutePosition(channels, window_size)
    for table in position.parameters():
        nn.init.normal_(table)
    return position


def relative(num_heads, window_size, inner_size):
    position = RelativePosition(num_heads, window_size, inner_size)
    nn.init.normal_(position.table)
    return position


def test_an_absolute_position_has_its_row_in_the_first_half_and_its_column_in_the_second():
    position = absolute(6, 4)
    table = position.table()
    assert table.shape == (16, 6)
    for place, values in enumerate(table):
        assert torch.equal(values[:3], position.rows[place // 4])
        assert torch.equal(values[3:], position.columns[place % 4])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), SIZES, st.booleans(), st.sampled_from([*Way]))
def test_each_token_gets_the_position_of_its_place_in_its_window(
    height, width, sizes, is_inner, way
):
    size = sizes[is_inner]
    position = absolute(4, size)
    layout = window_layout(height, width, sizes, way)
    found = position(layout.windows[size].position_index)
    tiles = position.table().view(size, size, 4).repeat(-(-height // size), -(-width // size), 1)
    expected = tiles[:height, :width].permute(2, 0, 1)[None]
    assert torch.equal(found, layout.to_windows(expected)[0])


def test_the_gradient_of_a_position_sums_over_all_tokens_in_its_place():
    position = absolute(4, 3).double()
    index = window_layout(7, 8, (3, 3)).windows[3].position_index
    grad = torch.randn(56, 4, dtype=torch.float64)
    rows, columns = torch.autograd.grad(position(index), [*position.parameters()], grad)
    for i in range(3):
        torch.testing.assert_close(rows[i], grad[index // 3 == i, :2].sum(0))
        torch.testing.assert_close(columns[i], grad[index % 3 == i, 2:].sum(0))


def test_positions_can_be_differentiated_twice():
    position = absolute(4, 2).double()
    index = window_layout(3, 5, (2, 2)).windows[2].position_index

    def square(rows, columns):
        tables = dict(rows=rows, columns=columns)
        return torch.func.functional_call(position, tables, (index,)).square()

    assert torch.autograd.gradcheck(square, tuple(position.parameters()))
    assert torch.autograd.gradgradcheck(square, tuple(position.parameters()))


@pytest.mark.parametrize('inner_size', [4, 2, 1])
def test_a_relative_position_looks_up_query_minus_key(inner_size):
    position = relative(2, 4, inner_size)
    bias, row_by_row = position(), position.row_by_row()
    assert bias.shape == row_by_row.shape == (2, 16, 16)
    rank = window_permutation(
        4, 4, (4, inner_size)
    ).argsort()  # where each token stands, row by row
    for query in range(16):
        for key in range(16):
            dh, dw = query // 4 - key // 4, query % 4 - key % 4
            expected = position.table[(dh + 3) * 7 + dw + 3]
            assert torch.equal(bias[:, rank[query], rank[key]], expected)
            assert torch.equal(row_by_row[:, query, key], expected)


def test_the_gradient_of_a_relative_position_sums_over_all_pairs_of_one_offset():
    position = relative(2, 3, 3).double()
    grad = torch.randn(2, 9, 9, dtype=torch.float64)
    (found,) = torch.autograd.grad(position(), position.table, grad)
    expected = torch.zeros_like(position.table)
    for query in range(9):
        for key in range(9):
            dh, dw = query // 3 - key // 3, query % 3 - key % 3
            expected[(dh + 2) * 5 + dw + 2] += grad[:, query, key]
    torch.testing.assert_close(found, expected)


def test_state_dicts_hold_the_tables_alone():
    assert [*absolute(4, 2).state_dict()] == ['rows', 'columns']
    assert [*relative(2, 4, 2).state_dict()] == ['table']
