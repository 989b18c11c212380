"""What the tests share: the checkout, its tools, networks whose every tensor matters."""

import io
import os
import runpy
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import torch
from mmengine.logging import MMLogger
from torch import nn

from contnet_mm import ConTNet

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
POSITIONS = ['absolute', 'relative']


def run_python(*args, cwd=None, **environ):
    """Run this Python in a new process, with environment variables changed; output is text."""
    command = [sys.executable, *map(str, args)]
    environ = {**os.environ, **environ}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True)


def run_script(path, *args, cwd=None):
    """Run a script in this process, where all is imported; the result is as of a new one."""
    out, err, folder, status = io.StringIO(), io.StringIO(), os.getcwd(), 0
    words = [str(path), *map(str, args)]
    logger = MMLogger.get_current_instance()
    level = logger.level
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, 'argv', words):
        try:
            os.chdir(cwd or folder)
            with patch.object(sys, 'path', [*sys.path]):
                runpy.run_path(words[0], run_name='__main__')
        except SystemExit as end:
            status = end.code or 0
        finally:
            os.chdir(folder)
            logger.setLevel(level)  # a script may set it, for its own process
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def run_tool(name, *args, cwd=None):
    """Run a tool of ours as :func:`run_script` does; `name` is that of its file without .py."""
    return run_script(ROOT / 'tools' / f'{name}.py', *args, cwd=cwd)


class RunsCode:
    """Makes a folder when it is unpickled, as a sign that code of a file was run."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def build(arch, **kwargs):
    """Build a network in eval mode that no parameter and no statistic leaves as it was made."""
    net = ConTNet(arch, **kwargs).eval()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            # Matrices stay small and even, or rounding would grow from layer to layer.
            matrix = tensor.dim() > 1
            tensor += 0.02 * torch.randn_like(tensor) if matrix else 0.1 * torch.rand_like(tensor)
    return net


def randomize(net):
    """Give every parameter and running statistic a value that matters."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


@contextmanager
def quick_weights():
    """Let layers start with the same random numbers over and over, for networks that only run.

    A quarter of the time of building and training a ResNet-101 for a step goes to drawing them.
    """
    numbers = torch.empty(2**20).uniform_(-1, 1)

    def fill(tensor, *args, **kwargs):
        fan = max(1, tensor[0].numel()) if tensor.numel() else 1
        with torch.no_grad():
            for part in tensor.view(-1).split(len(numbers)):
                part.copy_(numbers[: len(part)])
            return tensor.mul_(fan**-0.5)

    with patch.object(nn.init, 'kaiming_uniform_', fill):
        yield


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
