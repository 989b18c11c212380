"""The timing of ways to attend, which on a GPU says what to set."""

import pytest
import torch

from contnet_mm.benchmark.plan import Size
from contnet_mm.benchmark.ways import KERNELS, half_precision_kernel, measure_ways, render_ways
from contnet_mm.models import window_attention


def run_once(run):
    run()
    return 2.0


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_each_stage_and_window_size_has_a_row_that_says_how_often_it_occurs(device):
    rows = measure_ways('medium', Size(1, 65, 99), device, torch.bfloat16, run_once)
    assert [(row['stage'], row['window'], row['count']) for row in rows] == [
        *[(stage, window, 2) for stage in (1, 2, 3) for window in (7, 14)],
        (4, 7, 4),
    ]
    assert all(row[name] == 2.0 for row in rows for name in KERNELS)


def test_each_kernel_is_the_one_that_is_timed(monkeypatch):
    called = []
    for name in ('_flash', '_efficient', '_attend_whole'):
        function = getattr(window_attention, name)

        def spy(*args, name=name, function=function):
            called.append(name)
            return function(*args)

        monkeypatch.setattr(window_attention, name, spy)
    measure_ways('tiny', Size(1, 32, 32), 'meta', torch.bfloat16, run_once)
    assert called == ['_flash', '_efficient', '_attend_whole'] * 7


def test_the_fastest_over_the_whole_network_is_named():
    rows = [
        dict(stage=1, window=7, count=2, flash=1.0, efficient=2.0, padded=None),
        dict(stage=1, window=14, count=4, flash=2.0, efficient=1.0, padded=0.1),
    ]
    table = render_ways(rows)
    assert '| all |  | 6 | 10.000 | 8.000 | failed |' in table
    assert "HALF_PRECISION_KERNEL = 'efficient'" in table


def test_the_constant_is_set_back_after_an_error():
    before = window_attention.HALF_PRECISION_KERNEL
    with pytest.raises(RuntimeError), half_precision_kernel('padded'):
        raise RuntimeError
    assert before == window_attention.HALF_PRECISION_KERNEL
