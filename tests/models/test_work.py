"""What a training step asks of a GPU, counted without one, stays within bounds."""

import pytest
import torch

from contnet_mm import ConTNet
from contnet_mm.benchmark.count import count_cuda_forward, count_network
from contnet_mm.benchmark.plan import Size

needs_meta = pytest.mark.skipif(
    not hasattr(torch, 'get_autocast_dtype'), reason='torch before 2.4 checkpoints no meta tensors'
)
SIZES = (Size(2, 800, 1333), Size(2, 512, 1024))
# Operations, GB in float32 and bfloat16, GB of activations kept in float32, at both sizes.
BOUNDS = {
    'contnet-m-encoder': (830, (43.5, 23.6), (22.0, 11.9), (4.0, 2.2)),
    'contnet-m': (830, (43.5, 23.6), (22.0, 11.9), (4.2, 2.3)),
    # Masks are added to the bias of each head, and their sum has a gradient.
    'contnet-m-relative': (830, (46.5, 25.2), (23.4, 12.7), (4.8, 2.6)),
}


@needs_meta
@pytest.mark.parametrize('network', BOUNDS)
@pytest.mark.parametrize('number', [0, 1], ids=[str(size) for size in SIZES])
def test_a_training_step_stays_within_its_bounds(network, number):
    operations, float32, bfloat16, kept = BOUNDS[network]
    single = count_network(network, SIZES[number])
    half = count_network(network, SIZES[number], 'bfloat16-pure')
    assert single.operations <= operations and half.operations <= operations
    assert single.bytes <= float32[number] * 1e9
    assert half.bytes <= bfloat16[number] * 1e9
    assert single.kept <= kept[number] * 1e9 and half.kept <= 0.52 * kept[number] * 1e9


@needs_meta
@pytest.mark.parametrize('dtype', [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize('position', ['absolute', 'relative'])
def test_the_forward_pass_runs_on_cuda_tensors_without_values(position, dtype):
    with torch.device('meta'):
        net = ConTNet('base', position=position).train()
    images = torch.empty(2, 3, 97, 131, device='meta')
    operations = count_cuda_forward(net, images, dtype).forward
    # Attention is one operation, no row of products and softmaxes.
    assert operations <= (70 if dtype else 40) * sum(map(len, net.stages)) + 60
