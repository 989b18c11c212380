"""An encoder of :mod:`contnet_mm.layers`, computed by two kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from contnet_mm.kernels.operators import fused_attention, fused_mlp

if TYPE_CHECKING:
    from contnet_mm.layers import Encoder


def encode(encoder: Encoder, x: Tensor) -> Tensor:
    """Encode each window of a map, [B, H, W, C] -> [B, H, W, C].

    Args:
        encoder: Whose weights to use.
        x: Map; tokens keep their places. Under autocast it is cast like the weights of linear
            layers, and so is the result, while norms keep float32 inside.

    Raises:
        TypeError: If map and weights have different dtypes, outside autocast.
    """
    return feed_forward(encoder, attend(encoder, x))


def attend(encoder: Encoder, x: Tensor) -> Tensor:
    """The first half: positions, attention, residual and norm; see :func:`encode`."""
    attn, norm = encoder.attn, encoder.norm1
    dtype = _dtype(x, attn.qkv.weight)
    return fused_attention(
        x.to(dtype),
        _cast(encoder.position, dtype),
        _cast(attn.position, dtype),
        attn.qkv.weight.to(dtype),
        None if attn.qkv.bias is None else attn.qkv.bias.to(dtype),
        attn.proj.weight.to(dtype),
        attn.proj.bias.to(dtype),
        norm.weight,
        norm.bias,
        norm.eps,
        attn.window,
        attn.num_heads,
        encoder.pre_norm,
        _saves(encoder, x),
    )[0]


def feed_forward(encoder: Encoder, x: Tensor) -> Tensor:
    """The second half: linear layers, residual and norm; see :func:`encode`."""
    ffn, norm = encoder.ffn, encoder.norm2
    dtype = _dtype(x, ffn.fc1.weight)
    return fused_mlp(
        x.to(dtype).reshape(-1, x.shape[-1]),
        ffn.fc1.weight.to(dtype),
        ffn.fc1.bias.to(dtype),
        ffn.fc2.weight.to(dtype),
        ffn.fc2.bias.to(dtype),
        norm.weight,
        norm.bias,
        norm.eps,
        encoder.pre_norm,
        _saves(encoder, x),
    )[0].view(x.shape)


def _saves(encoder: Encoder, x: Tensor) -> bool:
    """Tell whether a backward pass may follow, which frozen encoders have none of."""
    needed = x.requires_grad or any(p.requires_grad for p in encoder.parameters())
    return torch.is_grad_enabled() and needed


def _dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    if x.dtype != weight.dtype:
        raise TypeError(f'map and weights must have one dtype, got {x.dtype} and {weight.dtype}')
    return x.dtype


def _cast(position: torch.nn.Module | None, dtype: torch.dtype) -> Tensor | None:
    return None if position is None else position().to(dtype)
