"""What only a GPU can tell: its attention kernels compute what written-out products do."""

import pytest
import torch

from contnet_mm import ConTNet
from contnet_mm.models.attention import MAX_WINDOWS, attend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device'),
]
# Largest difference, relative to the largest value of float64.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def run(tensors, bias, device, dtype):
    """Return the result of attention, and its gradients."""
    tensors = [x.to(device, dtype).requires_grad_() for x in tensors]
    bias = None if bias is None else bias.to(device, dtype)
    out = attend(*tensors, bias)
    return [out, *torch.autograd.grad(out.float().square().sum(), tensors)]


@pytest.mark.parametrize('has_bias', [False, True])
@pytest.mark.parametrize('window', [7, 14])
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_attention_has_the_values_and_gradients_of_plain_products(dtype, window, has_bias):
    tensors = torch.randn(3, 12, 2, window**2, 64).unbind()
    bias = torch.randn(12, 1, 1, -(-(window**2) // 16) * 16) if has_bias else None
    found, exact = run(tensors, bias, 'cuda', dtype), run(tensors, bias, 'cpu', torch.float64)
    for a, b in zip(found, exact, strict=True):
        assert (a.cpu().double() - b).abs().max() <= TOLERANCES[dtype] * b.abs().max()


@pytest.mark.parametrize('position', ['absolute', 'relative'])
@pytest.mark.parametrize('size', [(224, 224), (165, 317)], ids=str)
def test_the_network_has_the_maps_and_gradients_of_a_cpu(position, size):
    net, x = ConTNet('tiny', position=position), torch.randn(2, 3, *size)
    results = []
    for device in ('cpu', 'cuda'):
        net.to(device).zero_grad()
        maps = net(x.to(device))
        sum(m.square().mean() for m in maps).backward()
        results.append([m.detach().cpu() for m in maps])
        results[-1] += [p.grad.cpu() for p in net.parameters()]
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-3 * a.abs().max() + 1e-6


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_windows_beyond_the_grid_of_cuda_are_split(dtype):
    q, k, v = torch.randn(3, MAX_WINDOWS + 9, 1, 49, 8, device='cuda', dtype=dtype)
    with torch.no_grad():
        assert torch.equal(attend(q, k, v)[-9:], attend(q[-9:], k[-9:], v[-9:]))
