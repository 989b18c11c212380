"""Random sizes, batches, types of numbers and options: the maps of the reference implementation."""

import copy
import random

import pytest
import torch

from contnet_mm import ConTNet
from tests.helpers import randomize
from tests.numbers import HAS_HALF_ON_CPU
from tests.reference import reference_maps
from tests.reliability.forks import assert_all_pass

TOTAL = 2000
# Root mean square of the difference to the reference in float64, relative to that of the map.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}
GEOMETRIES = (
    {},
    {},
    dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    dict(strides=(1, 1, 2, 2)),
)


def make_case(number):
    """Return arguments of a network, the shape of its input and the type of numbers."""
    rng = random.Random(number)
    size = rng.choice((2, 3, 5, 7))
    arch = dict(
        base_channels=rng.choice((4, 8, 12)),
        depths=tuple(rng.choice((1, 1, 2)) for _ in range(4)),
        num_heads=tuple(rng.choice((1, 2, 4)) for _ in range(4)),
        feedforward_channels=tuple(rng.choice((4, 10, 16)) for _ in range(4)),
        window_sizes=tuple((size, size * rng.choice((1, 2))) for _ in range(4)),
        drop_rates=(0.0, 0.1, 0.0, 0.1),
        last_drop_rate=0.2,
    )
    options = dict(
        arch=arch,
        in_channels=rng.choice((1, 3, 3, 4)),
        position=rng.choice(('absolute', 'relative')),
        out_indices=tuple(sorted(rng.sample(range(4), rng.randrange(1, 5)))),
        **{name: rng.random() < 0.3 for name in ('pre_norm', 'avg_down', 'deep_stem')},
        feature_location=rng.choice(('block', 'encoder')),
        qkv_bias=rng.random() < 0.7,
        with_cp=rng.random() < 0.2,
        **rng.choice(GEOMETRIES),
    )
    side = (rng.randrange(32, 48), rng.randrange(32, 160), 32, 64, 33)
    shape = (rng.choice((1, 1, 2, 3)), options['in_channels'], rng.choice(side), rng.choice(side))
    return options, shape, rng.choice([*TOLERANCES])


def check(number, watch):
    options, shape, dtype = make_case(number)
    if dtype == torch.float16 and not HAS_HALF_ON_CPU:
        return 'no float16 here'
    torch.manual_seed(number)
    rng = random.Random(-number)
    net = randomize(ConTNet(**options)).eval().to(dtype)
    x = torch.randn(shape).to(dtype)
    if rng.random() < 0.3:
        x = x.to(memory_format=torch.channels_last)
    elif rng.random() < 0.2:
        x = torch.randn(*shape[:2], shape[3], shape[2]).to(dtype).transpose(2, 3)
    exact = copy.deepcopy(net).double()
    with torch.no_grad():
        expected = reference_maps(exact, x.double())
    with rng.choice((torch.no_grad, torch.inference_mode, torch.enable_grad))():
        found = net(x)
    what = f'{options}, {shape}, {dtype}'
    assert len(found) == len(options['out_indices']), what
    sizes = [tuple(y.shape[1:2]) for y in found]
    assert sizes == [(channels,) for channels in net.out_channels], what
    for y, want in zip(found, expected, strict=True):
        assert y.dtype == dtype and y.shape == want.shape, f'{what}: {y.dtype} {y.shape}'
        error = (y.detach().double() - want).square().mean().sqrt() / want.square().mean().sqrt()
        assert error <= TOLERANCES[dtype], f'{what}: differs by {error:.3g}'
    return str(dtype).removeprefix('torch.')


def test_some_random_inputs_give_the_maps_of_the_reference(tmp_path):
    assert_all_pass(check, range(20), tmp_path)


@pytest.mark.slow
def test_random_inputs_give_the_maps_of_the_reference(tmp_path):
    assert_all_pass(check, range(TOTAL), tmp_path)
