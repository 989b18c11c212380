"""What a training step asks of a GPU, counted without one, stays within bounds."""

import functools

import pytest
import torch

from contnet_mm import ConTNet
from contnet_mm.benchmark.count import count_cuda_forward, count_in_new_process
from contnet_mm.benchmark.plan import Size
from contnet_mm.models.window_attention import HAS_EFFICIENT_ATTENTION, varlen_attn

DETECTION = Size(2, 800, 1333)
count_once = functools.cache(count_in_new_process)
needs_kernels = pytest.mark.skipif(
    varlen_attn is None or not HAS_EFFICIENT_ATTENTION,
    reason='this torch lacks kernels that take cumulative lengths',
)


# Operations, gigabytes and more operations at a new size. ResNet-50 takes 400 operations and 34.2
# GB in float32.
@needs_kernels
@pytest.mark.parametrize(
    ('network', 'dtype', 'operations', 'gigabytes', 'more'),
    [
        ('contnet-m', 'float32', 760, 39.0, 30),
        ('contnet-m', 'bfloat16-pure', 790, 19.6, 30),
        ('contnet-m-relative', 'float32', 900, 45.0, 30),
    ],
)
def test_a_training_step_stays_within_its_bounds(network, dtype, operations, gigabytes, more):
    counted = count_once(network, DETECTION, dtype)
    assert counted.operations <= operations
    assert counted.bytes <= gigabytes * 1e9
    assert counted.more_at_new_size <= more


@needs_kernels
def test_every_image_size_takes_as_many_operations():
    counted = count_once('contnet-m', DETECTION, 'float32')
    other = count_in_new_process('contnet-m', Size(2, 512, 1024))
    assert counted.operations == other.operations


@pytest.mark.skipif(
    not hasattr(torch, 'get_autocast_dtype'), reason='torch before 2.4 asks for a driver'
)
@pytest.mark.parametrize('dtype', [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize('position', ['absolute', 'relative'])
@pytest.mark.parametrize('arch', ['tiny', 'small', 'medium', 'base'])
def test_the_forward_pass_runs_on_cuda_tensors_without_values(arch, position, dtype):
    with torch.device('meta'):
        net = ConTNet(arch, position=position).train()
    images = torch.empty(2, 3, 97, 131, device='meta')
    operations = [count_cuda_forward(net, images, dtype).forward for _ in range(2)]
    # A count is that of a path: attention is no row of products and softmaxes.
    blocks = sum(len(stage) for stage in net.stages)
    assert operations[0] == operations[1] <= 70 * blocks + 50
