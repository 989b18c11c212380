"""Fused GPU kernels of the encoders, and when they run; off unless ``fused=True`` asks for them.

None of them has run on a GPU yet: their logic is tested with Triton's interpreter, and they are
compiled for an H100, but not timed on one.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from contnet_mm import ops

# Stages whose bytes cost more than their products; wider ones are left to cuBLAS.
MAX_CHANNELS = 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Known from the start, since a compiler cannot ask while it traces.
HAS_TRITON = importlib.util.find_spec('triton') is not None
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'  # on the CPU, which tests ask for


def can_run(x: Tensor, drops: bool) -> bool:
    """Tell whether the kernels take an encoder's map; if not, the portable path does.

    Args:
        x: Map, [B, C, H, W].
        drops: Whether dropout is at work, which the kernels do not have.

    Raises:
        ImportError: If ``x`` is on a GPU and there is no Triton.
        ValueError: If ``x`` is on a GPU and torch is too old.
    """
    if not (x.is_cuda or (x.device.type == 'cpu' and INTERPRETED)):
        return False
    if drops or x.shape[1] > MAX_CHANNELS or x.dtype not in DTYPES:
        return False
    if ops.is_traced() and not ops.are_used():  # torch.export wants torch's own operators
        return False
    if not ops.AVAILABLE:
        raise ValueError(f'fused=True needs torch 2.4 or newer, this is {torch.__version__}')
    if not HAS_TRITON:
        raise ImportError('fused=True needs Triton, which comes with CUDA builds of torch')
    return True
