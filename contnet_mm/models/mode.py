"""How the forward pass is computed, and whether a compiler or tracer records it."""

from __future__ import annotations

from enum import Enum

import torch
from torch.autograd import forward_ad


class Mode(Enum):
    """How the encoders of a block compute."""

    PLAIN = "by torch's own differentiable operations, for compilers, tracers and transforms"
    TRAINING = 'by autograd functions that keep less for the backward pass'
    INFERENCE = 'without gradients, a few windows at a time'


def choose_mode(is_traced: bool) -> Mode:
    """Choose how to compute; ``is_traced`` tells whether a compiler or tracer records it."""
    if is_traced:
        return Mode.PLAIN
    if torch.is_grad_enabled():
        return Mode.TRAINING
    is_transforming = is_in_functorch() or forward_ad._current_level >= 0
    return Mode.PLAIN if is_transforming else Mode.INFERENCE


def is_compiling() -> bool:
    """Tell whether torch.compile records; torch before 2.3 cannot tell."""
    return getattr(torch.compiler, 'is_dynamo_compiling', bool)()


def is_tracing() -> bool:
    """Tell whether torch.jit.trace or torch.export records."""
    # torch.compiler.is_exporting() is True under torch.compile too (torch 2.11).
    is_exporting = getattr(torch.compiler, 'is_compiling', bool)() and not is_compiling()
    return torch.jit.is_tracing() or is_exporting


def is_in_functorch() -> bool:
    """Tell whether a transform of torch.func is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None
