"""Windows: their order of tokens, padding, masks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contnet_mm.models.windows import MASK_ALIGNMENT, padding_mask, to_map, to_windows

SIDES = st.integers(1, 40)
PAIRS = st.sampled_from([(14, 7), (7, 7), (4, 2), (6, 2), (5, 5)])


def token_numbers(height, width, outer, inner):
    """Number the tokens of a map row by row from 1; return them as windows, 0 being padding."""
    numbers = torch.arange(1, height * width + 1).view(1, 1, height, width)
    return to_windows(numbers, outer, inner)[..., 0]


@settings(deadline=None, max_examples=50)
@given(SIDES, SIDES, PAIRS, st.integers(1, 3))
def test_windows_become_the_map_again(height, width, pair, batch):
    x = torch.randn(batch, height, width, 3).permute(0, 3, 1, 2)
    windows = to_windows(x, *pair)
    assert windows.shape[1:] == (pair[0] ** 2, 3)
    again = to_map(windows.contiguous(), (height, width), *pair)
    assert torch.equal(again, x)
    assert again.permute(0, 2, 3, 1).is_contiguous()


@settings(deadline=None, max_examples=50)
@given(SIDES, SIDES, PAIRS, st.booleans())
def test_each_window_holds_a_square_of_the_map_row_by_row(height, width, pair, is_inner):
    size = pair[is_inner]
    windows = token_numbers(height, width, *pair).reshape(-1, (size // pair[1]) ** 2, pair[1] ** 2)
    seen = []
    for window in windows:
        rows, columns = (window - 1) // width, (window - 1) % width
        real = window > 0
        seen += window[real].tolist()
        if real.any():
            place = rows % size * size + columns % size
            assert len({*(rows // size * width + columns // size)[real].tolist()}) == 1
            assert (place.diff(dim=1) > 0)[real[:, 1:] & real[:, :-1]].all()  # row by row
    assert sorted(seen) == [*range(1, height * width + 1)]


@settings(deadline=None, max_examples=50)
@given(SIDES, SIDES, PAIRS, st.booleans(), st.integers(1, 2))
def test_masks_hide_padding_but_where_there_is_nothing_else(height, width, pair, is_inner, batch):
    size = pair[is_inner]
    mask = padding_mask(torch.empty(batch, 5, height, width), size, *pair)
    is_padding = token_numbers(height, width, *pair).reshape(-1, size**2) == 0
    hidden = is_padding & ~is_padding.all(1, keepdim=True)
    if mask is None:
        assert not hidden.any() and height % size == width % size == 0
        return
    assert torch.equal(mask[:, 0, 0, : size**2].isneginf(), hidden.repeat(batch, 1))
    assert (mask[:, 0, 0, : size**2][~hidden.repeat(batch, 1)] == 0).all()


@settings(deadline=None, max_examples=20)
@given(SIDES, SIDES, PAIRS, st.sampled_from([torch.float32, torch.float16]))
def test_masks_have_the_dtype_of_the_map_and_strides_that_no_kernel_copies(
    height, width, pair, dtype
):
    mask = padding_mask(torch.empty(2, 5, height, width, dtype=dtype), pair[0], *pair)
    if mask is not None:
        assert mask.dtype == dtype and mask.stride(-1) == 1
        assert all(stride % MASK_ALIGNMENT == 0 for stride in mask.stride()[:-1])
