"""What the tests share: networks whose every tensor matters, differences, the checkout."""

from pathlib import Path

import torch

from contnet_mm import ConTNet

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
POSITIONS = ['absolute', 'relative']


def build(arch, **kwargs):
    """Build a network in eval mode that no parameter and no statistic leaves as it was made."""
    net = ConTNet(arch, **kwargs).eval()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            # Matrices stay small and even, or rounding would grow from layer to layer.
            matrix = tensor.dim() > 1
            tensor += 0.02 * torch.randn_like(tensor) if matrix else 0.1 * torch.rand_like(tensor)
    return net


def difference(found, expected):
    """Largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


def assert_close(found, expected, tolerance=1e-5):
    """Compare maps, or any tensors, one by one."""
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert difference(a, b) <= tolerance, i


def loss_of(maps):
    """Return a number that every value of the maps has a say in."""
    return sum(m.square().mean() for m in maps)


def gradients(net, x):
    """Return the gradients of a loss by the parameters; they are not added to any other."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    return torch.autograd.grad(loss_of(net(x)), parameters)
