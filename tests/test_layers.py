"""Windows: splitting and merging, masks, position tables, attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contnet_mm.layers import (
    AbsolutePosition,
    RelativePosition,
    WindowAttention,
    WindowEncoders,
    merge_windows,
    nest,
    padding_masks,
    split_windows,
)

SIDES = st.integers(1, 45)
WINDOWS = st.sampled_from([(14, 7), (7, 7), (4, 2), (6, 2), (5, 5)])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), SIDES, SIDES, WINDOWS)
def test_merging_split_windows_gives_the_map_back(batch, height, width, windows):
    x = torch.randn(batch, height, width, 3)
    tokens = split_windows(x, *windows)
    count = batch * -(-height // windows[0]) * -(-width // windows[0])
    assert tokens.shape == (count, windows[0] ** 2, 3)
    assert torch.equal(merge_windows(tokens, (batch, height, width), *windows), x)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), SIDES, SIDES, WINDOWS)
def test_masks_hide_exactly_the_padding_of_the_windows_that_have_some(
    batch, height, width, windows
):
    # NaN is written into the padding by splitting a map of ones and looking for what is not one.
    tokens = split_windows(torch.ones(batch, height, width, 1), *windows)
    masks = padding_masks((batch, height, width), *windows, like=tokens)
    for side in set(windows):
        real = tokens.reshape(-1, side * side) == 1
        mixed = real.any(1) & ~real.all(1)
        if masks[side] is None:
            assert not mixed.any()
            continue
        mask = masks[side][:, 0, 0]
        whole = len(real) - len(mask)
        assert real[:whole].all()  # the windows without a mask need none
        assert torch.equal(mask[mixed[whole:]] == 0, real[whole:][mixed[whole:]])
        assert (mask[~mixed[whole:]] == 0).all()  # all padding or none: nothing to hide, and no NaN


def test_a_map_without_padding_gets_no_masks():
    assert padding_masks((2, 28, 42), 14, 7, like=torch.zeros(1)) == {14: None, 7: None}


def test_small_windows_without_padding_get_no_mask():
    masks = padding_masks((1, 21, 14), 14, 7, like=torch.zeros(1))
    assert masks[7] is None and masks[14] is not None


def test_nested_order_makes_small_windows_contiguous():
    grid = torch.arange(16).view(4, 4)
    assert nest(grid, 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


@pytest.mark.parametrize('inner', [2, 4])
def test_absolute_position_adds_rows_to_the_first_half_and_columns_to_the_second(inner):
    position = AbsolutePosition(6, 4, inner)
    torch.nn.init.normal_(position.rows)
    torch.nn.init.normal_(position.columns)
    added = position(torch.zeros(1, 16, 6))[0]
    places = nest(torch.arange(16).view(4, 4), inner)
    for token, place in zip(added, places, strict=True):
        assert torch.equal(token[:3], position.rows[place // 4])
        assert torch.equal(token[3:], position.columns[place % 4])


@pytest.mark.parametrize('inner', [2, 4])
def test_relative_position_looks_up_query_minus_key(inner):
    position = RelativePosition(2, 4, inner)
    torch.nn.init.normal_(position.table)
    bias = position()
    assert bias.shape == (1, 2, 16, 16)
    places = nest(torch.arange(16).view(4, 4), inner).tolist()
    for i, query in enumerate(places):
        for j, key in enumerate(places):
            dh, dw = query // 4 - key // 4, query % 4 - key % 4
            assert torch.equal(bias[0, :, i, j], position.table[(dh + 3) * 7 + dw + 3])


def test_attention_calls_the_masked_kernel_for_border_windows_only(monkeypatch):
    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None, **kwargs):
        calls.append((len(q), attn_mask is not None))
        return attention(q, k, v, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', spy)
    encoders = WindowEncoders(
        8,
        (7, 14),
        num_heads=1,
        feedforward_channels=8,
        position='absolute',
        pre_norm=False,
        qkv_bias=True,
        drop_rate=0.0,
    )
    encoders(torch.randn(1, 8, 30, 29))
    # 3 x 3 windows of 14, of which 2 x 2 are whole; four small ones in each.
    assert calls == [(16, False), (20, True), (4, False), (5, True)]


def test_the_mask_takes_the_dtype_of_the_queries(monkeypatch):
    # cuDNN's kernel reads a float32 mask beside bfloat16 queries as garbage and says nothing.
    seen = []

    def spy(q, k, v, attn_mask=None, **kwargs):
        seen.append((q.dtype, attn_mask.dtype))
        return q

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', spy)
    attention = WindowAttention(8, 2, RelativePosition(2, 2, 2), True, 0.0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        attention(torch.randn(3, 4, 8), torch.zeros(3, 1, 1, 4))
    assert seen == [(torch.bfloat16, torch.bfloat16)]
