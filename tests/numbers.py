"""Networks at the limits of dtypes: images of any scale, and the largest value on the way."""

from contextlib import nullcontext
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
FLOAT16_MAX = torch.finfo(torch.float16).max


def make_images(kind, scale, size):
    """Make two images: zeros, one colour each, or noise."""
    generator = torch.Generator().manual_seed(1)
    if kind == 'random':
        return scale * torch.randn(2, 3, *size, generator=generator)
    return scale * torch.ones(2, 3, *size) * torch.tensor([1.0, -0.5]).view(2, 1, 1, 1)


def largest_values(net, x):
    """Return the largest value that each module takes or gives, in float64."""
    largest = {}

    def watch(name):
        def hook(module, inputs, output):
            tensors = [t for t in (*inputs, output) if torch.is_tensor(t) and t.numel()]
            largest[name] = max(float(t.abs().max()) for t in tensors) if tensors else 0.0

        return hook

    net = deepcopy(net).double()
    for name, module in net.named_modules():
        if not list(module.children()):
            module.register_forward_hook(watch(name))
    with torch.no_grad():
        net(x.double())
    return largest


def overflowing(net, x):
    """Name the modules that take or give a value beyond float16, in the order of their calls."""
    return [name for name, value in largest_values(net, x).items() if value > FLOAT16_MAX]


class Run:
    """One forward and backward pass, and what the reference has for it.

    Args:
        net: Network, in the mode that it shall run in.
        mode: One of ``MODES``.
        x: Images in float32.
    """

    def __init__(self, net, mode, x):
        autocast, dtype, self.tolerance = MODES[mode]
        net, x = deepcopy(net).to(dtype), x.to(dtype)
        with torch.no_grad():
            self.expected = reference_maps(deepcopy(net).double(), x.double())
        context = torch.autocast('cpu', autocast) if autocast else nullcontext()
        with context:
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
            for m, e in zip(self.maps, self.expected, strict=True)
        )

    def not_finite(self):
        """Name what holds a number that is not finite: maps, gradients, statistics."""
        maps = {f'map {i}': m for i, m in enumerate(self.maps)}
        tensors = {**maps, **{f'gradient {n}': g for n, g in self.grads.items()}, **self.buffers}
        return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def check(net, mode, kind, scale, size):
    """Hold one pass against the reference; tell whether its numbers fit the dtype.

    Those that do not fit float16 in float64 either are no fault, but have to show.
    """
    x = make_images(kind, scale, size)
    run = Run(net, mode, x)
    in_float16 = mode.split()[-1] == 'float16'
    if in_float16 and not net.training and overflowing(net, x):
        assert run.not_finite(), (mode, kind, scale)
        return False
    # Parameters of 16 bits come with statistics of 16 bits, which hold no variance above 65504.
    too_wide = mode == 'float16' and net.training and scale > 1e3
    assert run.not_finite() == (['stages.0.0.norm.running_var'] if too_wide else [])
    assert run.error <= run.tolerance, (mode, kind, scale, run.error)
    assert any(grad.abs().max() > 0 for grad in run.grads.values())
    return True
