"""Measure one case: the time of an iteration, and its peak memory."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from contnet_mm.benchmark.networks import MEMORY_FORMATS, Setting, build_network
from contnet_mm.benchmark.plan import BFLOAT16, COMPILED, PURE_BFLOAT16, TF32, Case, Size

MEGABYTE = 10**6
MAX_REASON = 300  # characters
CACHE_LIMIT = 1024  # compiled versions of one function, far above what is needed
# Blocks from this size on go back to the system when they are freed, so that resident memory is
# memory in use. By default the C library raises the threshold up to 32 MB.
MALLOC_ENVIRONMENT = {'MALLOC_MMAP_THRESHOLD_': '65536'}


class Step:
    """One iteration of a case, ready to be called.

    Args:
        case: What runs, and how.
        setting: How the network is built.
    """

    def __init__(self, case: Case, setting: Setting) -> None:
        self.case, self.setting = case, setting
        self.training = case.pass_name == 'training'
        self.net = build_network(case.network, setting, case.size)
        self.weights = torch.bfloat16 if case.dtype == PURE_BFLOAT16 else torch.float32
        self.net.to(case.device, self.weights).train(self.training)
        self.run: Callable = self.net
        if case.mode == COMPILED:
            self.run = torch.compile(_own_function(self.net, str(case)), dynamic=False)
        self.images = self._make_images(case.size)

    def _make_images(self, size: Size) -> Tensor:
        """Make images in the network's dtype and memory format, [B, 3, H, W]."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(size.batch, 3, size.height, size.width, generator=generator)
        images = images.to(self.case.device, self.weights)
        return images.contiguous(memory_format=MEMORY_FORMATS[self.setting.memory_format])

    def __call__(self) -> None:
        """Run one iteration, and the compiler where it is the first."""
        autocast = nullcontext()
        if self.case.dtype == BFLOAT16:
            autocast = torch.autocast(self.case.device, torch.bfloat16)
        if self.training:
            with autocast:
                loss = sum(x.mean() for x in self.run(self.images))
            loss.backward()
            self.net.zero_grad(set_to_none=True)
        else:
            with torch.inference_mode(), autocast:
                self.run(self.images)

    def first(self) -> float:
        """Run the first iteration, in which all is compiled, and return its seconds.

        For inference on a CPU the compiler takes the weights for constants, as
        ``TORCHINDUCTOR_FREEZING=1`` makes it do; in training they change.
        """
        if self.training or self.case.device != 'cpu' or self.case.mode != COMPILED:
            return self.time(1)
        from torch._inductor import config

        with config.patch(freezing=True):
            return self.time(1)

    def time(self, iterations: int) -> float:
        """Return the mean seconds of some iterations."""
        self._set_tf32()
        began = self._now()
        for _ in range(iterations):
            self()
        return (self._now() - began) / iterations

    def cuda_peak(self) -> float:
        """Return the MB that one iteration takes on the GPU beyond weights and images."""
        self._set_tf32()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MEGABYTE

    def cpu_peak(self) -> float:
        """Return the MB that an iteration takes in this process beyond what is there before it.

        An iteration before that compiles and fills caches.

        Raises:
            OSError: If the system does not tell.
        """
        self.first()
        gc.collect()
        with suppress(AttributeError, OSError, TypeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
        before = _process_bytes('VmRSS')
        self()
        return (_process_bytes('VmHWM') - before) / MEGABYTE

    def _now(self) -> float:
        if self.case.device == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()

    def _set_tf32(self) -> None:
        if self.case.device == 'cuda':  # matrix products and convolutions have a switch each
            allowed = self.case.dtype == TF32
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def _own_function(net: nn.Module, name: str) -> Callable:
    """Wrap a network into a function with a code object of its own.

    Compiled code is kept per code object: networks of one class would share its cache, search it
    at every call, and run into its limit.
    """

    def forward(images: Tensor) -> tuple[Tensor, ...]:
        return net(images)

    forward.__code__ = forward.__code__.replace(co_name=re.sub(r'\W', '_', name))
    return forward


def _process_bytes(name: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{name}:'):
            return int(line.split()[1]) * 1024
    raise OSError(f'the system does not tell {name}')


def measure_peak(step: Step) -> float:
    """Return the peak memory of an iteration in MB, beyond weights and images.

    Raises:
        RuntimeError: If it cannot be measured; the message says why.
    """
    if step.case.device == 'cuda':
        return step.cuda_peak()
    with patch.dict('os.environ', MALLOC_ENVIRONMENT):  # the C library reads it at the start
        threads = torch.get_num_threads()
        return call_in_new_process(_build_and_measure_peak, step.case, step.setting, threads)


def _build_and_measure_peak(case: Case, setting: Setting, threads: int) -> float:
    torch.set_num_threads(threads)
    try:
        with raised_limit():
            return Step(case, setting).cpu_peak()
    except Exception as error:  # not all of a compiler's errors can be sent to another process
        raise RuntimeError(reason_of(error)) from None


def call_in_new_process(function: Callable, *args):
    """Call a function of a module in a new process, which has no peak of memory."""
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def raised_limit() -> AbstractContextManager:
    """Let no number of compiled versions of a function end in eager code, inside a with block."""
    from torch._dynamo import config

    name = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'
    return config.patch({name: CACHE_LIMIT})


def free_memory() -> None:
    """Free the memory of networks that are no longer used."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where no GPU is in use


def reason_of(error: BaseException) -> str:
    """Return in one line why something failed, without the folders in which it did."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A compiler's own words follow a long command.
    lines = lines[:1] + [line for line in lines[1:] if re.search(r'\berror: ', line)][:1]
    text = ': '.join([type(error).__name__, *lines])
    text = re.sub(r'(?:/[\w.@+~-]+)+/', '', text)
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + '...'
