"""What only a GPU can tell: its attention kernels compute what plain products do."""

from unittest.mock import patch

import pytest
import torch

from contnet_mm import ConTNet
from contnet_mm.models.window_attention import choose_way, window_attention
from contnet_mm.models.window_layout import Way, window_layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device'),
]
# Largest difference, relative to the largest value of float64.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def attend(qkv, bias, device, dtype, window, kernel):
    """Return the result of attention in a 25 x 42 map, and its gradients."""
    qkv = qkv.to(device, dtype).requires_grad_()
    inputs = [qkv] if bias is None else [qkv, bias.to(device, dtype).requires_grad_()]
    with patch('contnet_mm.models.window_attention.HALF_PRECISION_KERNEL', kernel):
        way = choose_way(qkv.device, dtype, 64, has_bias=bias is not None)
        layout = window_layout(25, 42, (7, 14), way, len(qkv), device)
        out = window_attention(qkv, inputs[1] if len(inputs) == 2 else None, layout, window, 2)
    return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]


@pytest.mark.parametrize('has_bias', [False, True])
@pytest.mark.parametrize('window', [7, 14])
@pytest.mark.parametrize('kernel', ['flash', 'efficient', 'padded'])
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_attention_has_the_values_and_gradients_of_plain_products(dtype, kernel, window, has_bias):
    qkv = torch.randn(2, 25 * 42, 3 * 128)
    bias = torch.randn(2, window**2, window**2) if has_bias else None
    found = attend(qkv, bias, 'cuda', dtype, window, kernel)
    exact = attend(qkv, bias, 'cpu', torch.float64, window, kernel)
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


def test_windows_beyond_the_grid_of_cuda_go_in_runs():
    batch = 800  # of 90 windows each
    qkv = torch.randn(batch, 100 * 42, 3 * 8, device='cuda', dtype=torch.bfloat16)
    layout = window_layout(100, 42, (7, 7), Way.CUMULATIVE, batch, 'cuda')
    once = window_layout(100, 42, (7, 7), Way.CUMULATIVE, 1, 'cuda')
    assert len(layout.windows[7].runs) == 2
    with torch.no_grad():
        out = window_attention(qkv, None, layout, 7, 1)
        assert torch.equal(out[-1:], window_attention(qkv[-1:], None, once, 7, 1))
