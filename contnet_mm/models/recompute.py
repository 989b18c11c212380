"""Activations that the backward pass computes again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


def recompute(function: Callable[..., Tensor], *args, has_dropout: bool) -> Tensor:
    """Call a function in training without keeping its inner activations for the backward pass.

    A compiler chooses itself what to keep, and gradients of torch.func allow no hooks of saved
    tensors, which checkpoints need: there, this is an ordinary call.
    """
    if not torch.is_grad_enabled() or _is_compiling() or not _allows_hooks():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=has_dropout)


def _is_compiling() -> bool:
    return getattr(torch.compiler, 'is_compiling', bool)()  # torch before 2.3 cannot tell


def _allows_hooks() -> bool:
    try:
        with saved_tensors_hooks(lambda x: x, lambda x: x):
            return True
    except RuntimeError:
        return False
