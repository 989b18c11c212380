"""Fused GPU kernels of the encoders, and when they run; off unless ``fused=True`` asks for them.

None of them has run on a GPU yet: their logic is tested with Triton's interpreter, and they are
compiled for an H100, but not timed on one.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

# What the kernels are compiled and, on a GPU, checked for. Wider stages move few bytes for their
# products, which cuBLAS computes better; larger windows and heads do not fit on a multiprocessor.
MAX_CHANNELS = 128
MAX_WINDOW_SIZE = 14  # tokens
MAX_HEAD_DIM = 64  # channels
CAPABILITY = (9, 0)  # of an H100
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Known from the start, since a compiler cannot ask while it traces.
HAS_TRITON = importlib.util.find_spec('triton') is not None
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'  # on the CPU, which tests ask for


def supports(x: Tensor, window_size: int, head_dim: int, has_dropout: bool) -> bool:
    """Tell whether the kernels take an encoder's map; if not, the portable path does.

    Args:
        x: Map, [B, C, H, W].
        window_size: Side of the larger windows in tokens.
        head_dim: Channels of a head.
        has_dropout: Whether anything is dropped, which the kernels cannot do.

    Raises:
        ImportError: If ``x`` is on a GPU and there is no Triton.
        ValueError: If ``x`` is on a GPU and torch is too old.
    """
    if has_dropout or x.shape[1] > MAX_CHANNELS or x.dtype not in DTYPES:
        return False
    if window_size > MAX_WINDOW_SIZE or head_dim > MAX_HEAD_DIM:
        return False
    interpreted = INTERPRETED and x.device.type == 'cpu'
    if not (is_known_gpu(x.device.index) if x.is_cuda else interpreted):
        return False
    if not hasattr(torch.library, 'custom_op'):
        raise ValueError(f'fused=True needs torch 2.4 or newer, this is {torch.__version__}')
    if not HAS_TRITON:
        raise ImportError('fused=True needs Triton, which comes with CUDA builds of torch')
    return True


@torch.compiler.assume_constant_result
def is_known_gpu(index: int | None) -> bool:
    """Tell whether a GPU, the current one by default, is one that the kernels are compiled for."""
    return torch.cuda.get_device_capability(index) == CAPABILITY
