"""What the benchmark plans: sizes, cases, shapes of multi-scale training."""

import re

import pytest

from contnet_mm.benchmark.plan import Size, parse_size, plan_cases

SMALL = Size(1, 64, 64)


@pytest.mark.parametrize(
    ('text', 'size'),
    [('800x1333', Size(1, 800, 1333)), ('4x224x224', Size(4, 224, 224))],
)
def test_size_is_read_as_written(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize('text', ['224', '224x', '0x64x64', '31x64', '1x2x3x4', '-1x64', 'large'])
def test_wrong_size_is_named(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_size(text)


def names(networks, sizes, passes, modes, dtypes, device='cpu'):
    return [str(case) for case in plan_cases(networks, sizes, passes, modes, dtypes, device)]


def test_duplicates_and_combinations_that_make_no_sense_are_left_out():
    networks = ['contnet-m', 'contnet-m-cp', 'contnet-m']
    dtypes = ['float32', 'bfloat16-pure']
    sizes, passes = [SMALL, SMALL], ['inference', 'training', 'inference']
    assert names(networks, sizes, passes, ['eager'], dtypes) == [
        '1x64x64 inference contnet-m eager float32',
        '1x64x64 inference contnet-m eager bfloat16-pure',
        '1x64x64 training contnet-m eager float32',
        '1x64x64 training contnet-m-cp eager float32',
    ]
    with pytest.raises(ValueError, match='nothing to run'):
        names(['resnet50'], [SMALL], ['training'], ['eager'], ['bfloat16-pure'])


def test_tf32_is_refused_on_a_cpu():
    words = ['resnet50'], [SMALL], ['training'], ['eager'], ['tf32']
    with pytest.raises(ValueError, match="dtype 'tf32' needs a CUDA device, got device 'cpu'"):
        names(*words)
    assert len(names(*words, device='cuda')) == 1
