"""Attention inside windows, by torch's fused kernels or written out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

# CUDA kernels put windows on an axis of their grid that ends here.
MAX_WINDOWS = 65535


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, drop_rate: float = 0.0
) -> Tensor:
    """Compute ``softmax(q k^T / sqrt(D) + bias) v``.

    Args:
        q: Queries, [N, heads, P, D].
        k: Keys, likewise.
        v: Values, likewise.
        bias: What to add to the logits, [N or 1, heads or 1, P or 1, P or more]; what lies beyond P
            is left out.
        drop_rate: Dropout of the attention weights.

    Returns:
        [N, heads, P, D].
    """
    if bias is not None:  # the kernels misread a bias of another dtype
        bias = bias.to(q.dtype)[..., : k.shape[2]]
    # The fused kernels have first derivatives alone, and on a CPU they gain little in training.
    # Counters of operations trace, and overlook them. float16 needs them: its logits overflow.
    is_training = q.device.type == 'cpu' and q.dtype != torch.float16 and torch.is_grad_enabled()
    if is_training or torch.jit.is_tracing():
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        weights = (logits if bias is None else logits + bias).softmax(-1)
        return F.dropout(weights, drop_rate) @ v
    if len(q) > MAX_WINDOWS:
        shared = bias is None or len(bias) == 1
        biases = [bias] * -(-len(q) // MAX_WINDOWS) if shared else bias.split(MAX_WINDOWS)
        parts = zip(*(x.split(MAX_WINDOWS) for x in (q, k, v)), biases, strict=True)
        return torch.cat([attend(*part, drop_rate) for part in parts])
    with _without_cudnn():
        return F.scaled_dot_product_attention(q, k, v, bias, drop_rate)


def _without_cudnn() -> AbstractContextManager:
    """Leave out cuDNN's attention, which takes a second to plan for each number of windows."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # torch before 2.3, which does not have it
        return nullcontext()
    kernels = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
    return sdpa_kernel([*kernels])
