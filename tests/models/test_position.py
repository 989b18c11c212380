"""Tables of positions: what they hold for which token, and their gradients."""

import pytest
import torch
from torch import nn

from contnet_mm.models.position import AbsolutePosition, RelativePosition
from contnet_mm.models.windows import MASK_ALIGNMENT, to_windows

SIZES = [(4, 4), (4, 2), (6, 2), (3, 3)]  # of a window, and of those nested in it


def places(window_size, inner_size):
    """Return row and column of each token of a window in nested order."""
    tokens = torch.arange(window_size**2).view(1, 1, window_size, window_size)
    order = to_windows(tokens, window_size, inner_size).flatten()
    return [(int(i) // window_size, int(i) % window_size) for i in order]


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_an_absolute_position_has_its_row_in_the_first_half_and_its_column_in_the_second(sizes):
    position = AbsolutePosition(6, *sizes)
    for table in position.parameters():
        nn.init.normal_(table)
    found = position()
    assert found.shape == (sizes[0] ** 2, 6)
    for (row, column), values in zip(places(*sizes), found, strict=True):
        assert torch.equal(values[:3], position.rows[row])
        assert torch.equal(values[3:], position.columns[column])


@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_a_relative_position_looks_up_query_minus_key(sizes):
    p = sizes[0]
    position = RelativePosition(2, *sizes)
    nn.init.normal_(position.table)
    (bias,) = position()
    for q, (query_row, query_column) in enumerate(places(*sizes)):
        for k, (key_row, key_column) in enumerate(places(*sizes)):
            offset = (query_row - key_row + p - 1) * (2 * p - 1) + query_column - key_column + p - 1
            assert torch.equal(bias[:, q, k], position.table[offset])


@pytest.mark.parametrize('num_heads', [1, 4])
@pytest.mark.parametrize('window_size', [7, 14])
def test_the_bias_of_relative_positions_has_strides_that_fused_attention_takes(
    window_size, num_heads
):
    bias = RelativePosition(num_heads, window_size, 7)()
    assert bias.stride(-1) == 1
    assert all(stride % MASK_ALIGNMENT == 0 for stride in bias.stride()[:-1])


def test_gradients_of_positions_sum_over_all_tokens_in_their_place():
    absolute, relative = AbsolutePosition(4, 4, 2).double(), RelativePosition(2, 4, 2).double()
    grad = torch.randn(16, 4, dtype=torch.float64)
    rows, columns = torch.autograd.grad(absolute(), [absolute.rows, absolute.columns], grad)
    expected = torch.zeros(2, 4, 2, dtype=torch.float64)
    for (row, column), values in zip(places(4, 2), grad, strict=True):
        expected[0, row] += values[:2]
        expected[1, column] += values[2:]
    torch.testing.assert_close(torch.stack([rows, columns]), expected)
    grad = torch.randn(2, 16, 16, dtype=torch.float64)
    (found,) = torch.autograd.grad(relative()[0, ..., :16], relative.table, grad)
    expected = torch.zeros_like(relative.table)
    for q, (query_row, query_column) in enumerate(places(4, 2)):
        for k, (key_row, key_column) in enumerate(places(4, 2)):
            offset = (query_row - key_row + 3) * 7 + query_column - key_column + 3
            expected[offset] += grad[:, q, k]
    torch.testing.assert_close(found, expected)


def test_state_dicts_hold_the_tables_alone():
    assert [*AbsolutePosition(4, 2, 2).state_dict()] == ['rows', 'columns']
    assert [*RelativePosition(2, 4, 2).state_dict()] == ['table']
