"""What the benchmark plans: sizes, cases, shapes of multi-scale training."""

import re

import pytest

from contnet_mm.benchmark import plan
from contnet_mm.benchmark.plan import MULTISCALE, Size, multiscale_shapes, parse_size, plan_cases

SMALL = Size(1, 64, 64)


@pytest.mark.parametrize(
    ('text', 'size'),
    [('800x1333', Size(1, 800, 1333)), ('4x224x224', Size(4, 224, 224))],
)
def test_size_is_read_as_written(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    'text', ['224', '224x', '0x64x64', '31x64', '1x2x3x4', '-1x64', MULTISCALE]
)
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


def test_compiled_is_for_any_size_with_multiscale():
    modes = ['eager', 'compiled']
    assert names(['resnet50'], [SMALL, MULTISCALE], ['training'], modes, ['float32']) == [
        '1x64x64 training resnet50 eager float32',
        '1x64x64 training resnet50 compiled float32',
        'multiscale training resnet50 eager float32',
        'multiscale training resnet50 dynamic float32',
    ]


@pytest.mark.parametrize(
    'network, dtype, wrong',
    [
        ('resnet50', 'tf32', "dtype 'tf32'"),
        ('contnet-m-fused', 'bfloat16', "network 'contnet-m-fused'"),
    ],
)
def test_what_needs_a_gpu_is_refused_on_a_cpu(network, dtype, wrong):
    words = [network], [SMALL], ['training'], ['eager'], [dtype]
    with pytest.raises(ValueError, match=f"{wrong} needs a CUDA device, got device 'cpu'"):
        names(*words)
    assert len(names(*words, device='cuda')) == 1


def test_multiscale_shapes_are_different_repeatable_and_within_the_bounds():
    shapes = multiscale_shapes(60, seed=0)
    assert shapes == multiscale_shapes(60, seed=0) != multiscale_shapes(60, seed=1)
    assert len(set(shapes)) == 60
    for shape in shapes:
        assert shape.batch == 2 and shape.height % 32 == shape.width % 32 == 0
        short, long = sorted((shape.height, shape.width))
        assert short <= 800 and long <= 1344
    assert any(s.height > s.width for s in shapes) and any(s.height < s.width for s in shapes)


def test_multiscale_images_keep_their_ratio_and_meet_a_bound(monkeypatch):
    monkeypatch.setattr(plan, 'SHORT_SIDES', [800])
    shapes = {}
    for image in ((480, 640), (360, 640)):  # the short side, then the long side is at its bound
        monkeypatch.setattr(plan, 'IMAGES', [image])
        shapes[image] = set(map(str, multiscale_shapes(2, seed=0)))
    assert shapes == {
        (480, 640): {'2x800x1088', '2x1088x800'},  # 800 x 1067
        (360, 640): {'2x768x1344', '2x1344x768'},  # 750 x 1333
    }


def test_shapes_of_a_seed_stay_the_same():
    assert [*map(str, multiscale_shapes(3, seed=0))] == ['2x672x832', '2x672x1024', '2x768x1184']


@pytest.mark.parametrize('number', [0, 101])
def test_number_of_shapes_out_of_range_is_named(number):
    with pytest.raises(ValueError, match=f'got {number}'):
        multiscale_shapes(number, seed=0)


def test_most_shapes_can_be_drawn():
    assert len(multiscale_shapes(100, seed=3)) == 100
