"""Numbers stay numbers with the windows of the paper: all dtypes, scales and options."""

import pytest

from tests.helpers import POSITIONS, build
from tests.numbers import KINDS, MODE_PARAMS, check

pytestmark = pytest.mark.slow

ARCH = dict(
    base_channels=16,
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 4, 8),
    feedforward_channels=(32, 64, 64, 96),
    window_sizes=((7, 14), (7, 14), (7, 14), (7, 7)),
    drop_rates=(0.0,) * 4,
    last_drop_rate=0.0,
)
# Maps of 57, 29, 15 and 8 rows: the last row of each is a window of its own. So are the last
# columns of 15 and 8.
SIZE = (225, 57)


@pytest.mark.parametrize('mode', MODE_PARAMS)
@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('pre_norm', [False, True])
@pytest.mark.parametrize('training', [False, True])
def test_numbers_fit_and_are_near_those_in_float64(mode, position, pre_norm, training):
    net = build(ARCH, position=position, pre_norm=pre_norm, avg_down=pre_norm).train(training)
    assert len(KINDS) == 11
    fits = [check(net, mode, kind, scale, SIZE) for kind, scale in KINDS]
    # Only images ten thousand times those of the running statistics exceed float16.
    assert [scale for ok, (_, scale) in zip(fits, KINDS, strict=True) if not ok] in (
        [],
        [1e4],
        [1e4, 1e4],
    )
