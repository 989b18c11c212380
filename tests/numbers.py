"""Networks at the limits of dtypes: images of any scale, and the largest value on the way."""

from copy import deepcopy

import pytest
import torch
from mmengine.utils import digit_version

from tests.reference import reference_maps

HAS_HALF_ON_CPU = digit_version(torch.__version__) >= digit_version('2.4')
# The dtype of autocast, or of all parameters, and how far maps may be from those in float64. Each
# norm of equal values, as in images of one colour, makes what rounding told apart 316 times larger.
MODES = {
    'float32': (None, torch.float32, 2e-4),
    'autocast bfloat16': (torch.bfloat16, torch.float32, 0.15),
    'autocast float16': (torch.float16, torch.float32, 0.05),
    'bfloat16': (None, torch.bfloat16, 0.15),
    'float16': (None, torch.float16, 0.05),
}
SCALES = (1e-4, 1e-2, 1.0, 1e2, 1e4)
KINDS = [('zero', 0.0), *((kind, scale) for kind in ('random', 'constant') for scale in SCALES)]
MODE_PARAMS = [
    pytest.param(
        mode,
        marks=pytest.mark.skipif(
            mode.split()[-1] == 'float16' and not HAS_HALF_ON_CPU,
            reason='this torch has no float16 on a CPU',
        ),
    )
    for mode in MODES
]


def make_images(kind, scale, size):
    """Make two images: zeros, one colour each, or noise."""
    generator = torch.Generator().manual_seed(1)
    if kind == 'random':
        return scale * torch.randn(2, 3, *size, generator=generator)
    return scale * torch.ones(2, 3, *size) * torch.tensor([1.0, -0.5]).view(2, 1, 1, 1)


def overflows_float16(net, x):
    """Return whether any layer takes or gives a value beyond float16, computed in float64."""
    largest = []

    def hook(module, inputs, output):
        tensors = [t for t in (*inputs, output) if torch.is_tensor(t) and t.numel()]
        largest.extend(float(t.abs().max()) for t in tensors)

    net = deepcopy(net).double()
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(hook)
    with torch.no_grad():
        net(x.double())
    return max(largest) > torch.finfo(torch.float16).max


class Run:
    """One inference, one training step, and the maps of the reference.

    On a CPU they compute attention in two ways.

    Args:
        net: Network, in training or evaluation mode.
        mode: One of ``MODES``.
        x: Images in float32.
    """

    def __init__(self, net, mode, x):
        autocast, dtype, self.tolerance = MODES[mode]
        net, x = deepcopy(net).to(dtype), x.to(dtype)
        with torch.no_grad():
            self.expected = reference_maps(deepcopy(net).double(), x.double())
            with torch.autocast('cpu', autocast, enabled=autocast is not None):
                self.inferred = deepcopy(net)(x)
        with torch.autocast('cpu', autocast, enabled=autocast is not None):
            self.maps = net(x)
        generator = torch.Generator().manual_seed(2)
        # Even where maps are zero, this has a gradient. It is of the size that a loss has.
        loss = sum(
            (m.float() * torch.randn(m.shape, generator=generator)).mean() for m in self.maps
        )
        loss.backward()
        self.grads = {name: p.grad for name, p in net.named_parameters()}
        self.buffers = {n: b for n, b in net.named_buffers() if b.is_floating_point()}

    @property
    def error(self):
        """Largest difference from the reference, relative to its largest value, of any map."""
        return max(
            float((m.detach().double() - e).abs().max() / e.abs().max())
            for maps in (self.maps, self.inferred)
            for m, e in zip(maps, self.expected, strict=True)
        )

    def not_finite(self):
        """Name what holds a number that is not finite: maps, gradients, statistics."""
        maps = {f'map {i}': m for i, m in enumerate([*self.maps, *self.inferred])}
        tensors = {**maps, **{f'gradient {n}': g for n, g in self.grads.items()}, **self.buffers}
        return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def check(net, mode, kind, scale, size):
    """Compare one run with the reference; return whether its numbers fit the dtype.

    Numbers that exceed float16 are no fault, but maps or gradients have to show them.
    """
    x = make_images(kind, scale, size)
    run = Run(net, mode, x)
    in_float16 = mode.split()[-1] == 'float16'
    if in_float16 and not net.training and overflows_float16(net, x):
        assert run.not_finite(), (mode, kind, scale)
        return False
    # Parameters of 16 bits come with statistics of 16 bits, which hold no variance above 65504.
    too_wide = mode == 'float16' and net.training and scale > 1e3
    assert run.not_finite() == (['stages.0.0.norm.running_var'] if too_wide else [])
    assert run.error <= run.tolerance, (mode, kind, scale, run.error)
    assert any(grad.abs().max() > 0 for grad in run.grads.values())
    return True
