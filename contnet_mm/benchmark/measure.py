"""Running one cell: an iteration of it, its time, its peak memory on a CUDA device."""

from __future__ import annotations

import gc
import re
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from contnet_mm.benchmark.networks import MEMORY_FORMATS, Setting, build_network
from contnet_mm.benchmark.plan import (
    BFLOAT16,
    COMPILED,
    DYNAMIC,
    PURE_BFLOAT16,
    TF32,
    Cell,
    Size,
)

MEGABYTE = 10**6
MAX_REASON = 300  # characters
ENTRIES = 1024  # of compiled code for one function, far more than are needed


class Step:
    """One iteration of a cell, ready to be called.

    Args:
        cell: What runs, and how.
        setting: How the network is built.
        size: Of the images.
        pass_name: ``'inference'`` (eval mode, no gradients) or ``'training'`` (train mode, forward
            and backward; the loss is the sum of the means of the maps; no optimizer).
        device: ``'cpu'`` or ``'cuda'``.
    """

    def __init__(
        self, cell: Cell, setting: Setting, size: Size, pass_name: str, device: str
    ) -> None:
        self.cell, self.setting, self.device = cell, setting, device
        self.training = pass_name == 'training'
        family = cell.network.partition('-')[0]
        compile_itself = cell.mode == DYNAMIC and family == 'contnet'
        self.net = build_network(cell.network, setting, size, compile_itself)
        self.weights = torch.bfloat16 if cell.dtype == PURE_BFLOAT16 else torch.float32
        self.net.to(device, self.weights).train(self.training)
        # Nobody but us may freeze: the weights of a network that trains change.
        self.freezing = cell.mode == COMPILED and device == 'cpu' and not self.training
        self.run: Callable = self.net
        if cell.mode == COMPILED:
            self.run = torch.compile(_own_function(self.net, str(cell)), dynamic=False)
        elif cell.mode == DYNAMIC and not compile_itself:
            self.run = torch.compile(_own_function(self.net, str(cell)), dynamic=True)
        self.images = self.make_images(size)

    def make_images(self, size: Size) -> Tensor:
        """Make images of another size as they suit the network, [B, 3, H, W]."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(size.batch, 3, size.height, size.width, generator=generator)
        images = images.to(self.device, self.weights)
        return images.contiguous(memory_format=MEMORY_FORMATS[self.setting.memory_format])

    def __call__(self) -> None:
        """Run one iteration, and the compiler where it is the first."""
        if self.training:
            with self._autocast():
                loss = sum(x.mean() for x in self.run(self.images))
            loss.backward()
            self.net.zero_grad(set_to_none=True)
        else:
            with torch.inference_mode(), self._autocast():
                self.run(self.images)

    def first(self) -> float:
        """Run the first iteration, in which all is compiled, and tell how many seconds it took."""
        with freezing() if self.freezing else nullcontext():
            return self.time(1)

    def time(self, iterations: int) -> float:
        """Tell how many seconds one iteration takes, as the mean of some."""
        if self.device == 'cuda':
            allow_tf32(self.cell.dtype == TF32)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for _ in range(iterations):
                self()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1000 / iterations
        began = time.perf_counter()
        for _ in range(iterations):
            self()
        return (time.perf_counter() - began) / iterations

    def cuda_peak(self) -> float:
        """Tell how many MB one iteration takes on the device beyond weights and images."""
        allow_tf32(self.cell.dtype == TF32)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MEGABYTE

    def _autocast(self):
        if self.cell.dtype == BFLOAT16:
            return torch.autocast(self.device, torch.bfloat16)
        return nullcontext()


def _own_function(net: nn.Module, name: str) -> Callable:
    """Wrap a network into a function with a code object of its own.

    Compiled code is kept per code object: networks of one class would share the list of it, search
    it at every call, and run into its limit.
    """

    def forward(images: Tensor) -> tuple[Tensor, ...]:
        return net(images)

    code = forward.__code__.replace(co_name=re.sub(r'\W', '_', name))
    return types.FunctionType(
        code, forward.__globals__, code.co_name, forward.__defaults__, forward.__closure__
    )


@contextmanager
def freezing() -> Iterator[None]:
    """Let the compiler take the weights for constants, as ``TORCHINDUCTOR_FREEZING=1`` does."""
    from torch._inductor import config

    with config.patch(freezing=True):
        yield


def allow_tf32(allowed: bool) -> None:
    """Set both switches: matrix products and convolutions have one each."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def forget_compiled(raise_limit: bool) -> None:
    """Drop all that was compiled so far.

    Args:
        raise_limit: Let no limit of the compiler's end in eager code; else its own limit counts,
            as it does for a user.
    """
    from torch._dynamo import config

    torch._dynamo.reset()
    for name in ('recompile_limit', 'cache_size_limit'):  # the new and the old name
        if hasattr(config, name):
            DEFAULT_LIMITS.setdefault(name, getattr(config, name))
            setattr(config, name, ENTRIES if raise_limit else DEFAULT_LIMITS[name])


DEFAULT_LIMITS: dict[str, int] = {}


def free_memory(device: str) -> None:
    """Give back what networks that are gone have left behind."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()


def reason_of(error: BaseException) -> str:
    """Tell in one line why something failed, without the folders in which it did."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A compiler's own words follow a long command.
    lines = lines[:1] + [line for line in lines[1:] if re.search(r'\berror: ', line)][:1]
    text = ': '.join([type(error).__name__, *lines])
    text = re.sub(r'(?:/[\w.@+~-]+)+/', '', text)
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + '...'
