"""Both halves of an encoder, each computed by one kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from contnet_mm.models.kernels.attention import fused_attention
from contnet_mm.models.kernels.mlp import fused_mlp


def attend(
    x: Tensor,
    position: Tensor | None,
    bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    window_size: int,
    num_heads: int,
    pre_norm: bool,
) -> Tensor:
    """Compute the first half of an encoder: positions, attention, residual and norm.

    Args:
        x: Map, [B, H, W, C]. Under autocast it is cast like the weights of linear layers, and so
            is the result, while norms keep float32 inside.
        position: Added to each token of a window, row by row, [P, C], or None.
        bias: Added to the logits, query by key, row by row, [heads, P, P], or None.
        qkv_weight: Of the projection to queries, keys and values, [3 * C, C].
        qkv_bias: Likewise, [3 * C], or None.
        proj_weight: Of the projection behind attention, [C, C].
        proj_bias: Likewise, [C].
        norm_weight: Of the layer norm, [C].
        norm_bias: Likewise, [C].
        eps: Of the layer norm.
        window_size: Side of a window in tokens.
        num_heads: Number of heads.
        pre_norm: Normalise before attention instead of after the sum.

    Returns:
        Map, [B, H, W, C].

    Raises:
        TypeError: If map and weights have different dtypes, outside autocast.
    """
    dtype = _dtype(x, qkv_weight)
    weights = (position, bias, qkv_weight, qkv_bias, proj_weight, proj_bias)
    norm = (norm_weight, norm_bias)
    options = (eps, window_size, num_heads, pre_norm)
    save = _is_backward_possible(x, *weights, *norm)
    weights = [None if t is None else t.to(dtype) for t in weights]
    return fused_attention(x.to(dtype), *weights, *norm, *options, save)[0]


def feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    pre_norm: bool,
) -> Tensor:
    """Compute the second half of an encoder: linear layers, residual and norm.

    Args:
        x: Map, [B, H, W, C]; see :func:`attend`.
        fc1_weight: Of the first layer, [M, C].
        fc1_bias: Likewise, [M].
        fc2_weight: Of the second layer, [C, M].
        fc2_bias: Likewise, [C].
        norm_weight: Of the layer norm, [C].
        norm_bias: Likewise, [C].
        eps: Of the layer norm.
        pre_norm: Normalise before the first layer instead of after the sum.

    Returns:
        Map, [B, H, W, C].

    Raises:
        TypeError: If map and weights have different dtypes, outside autocast.
    """
    dtype = _dtype(x, fc1_weight)
    weights, norm = (fc1_weight, fc1_bias, fc2_weight, fc2_bias), (norm_weight, norm_bias)
    save = _is_backward_possible(x, *weights, *norm)
    tokens = x.to(dtype).reshape(-1, x.shape[-1])
    weights = [t.to(dtype) for t in weights]
    return fused_mlp(tokens, *weights, *norm, eps, pre_norm, save)[0].view(x.shape)


def _is_backward_possible(*tensors: Tensor | None) -> bool:
    """Tell whether a backward pass may follow; there is none if all inputs are frozen."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    if x.dtype != weight.dtype:
        raise TypeError(f'map and weights must have one dtype, got {x.dtype} and {weight.dtype}')
    return x.dtype
