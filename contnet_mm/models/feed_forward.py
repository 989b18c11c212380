"""The feed-forward half of an encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contnet_mm.models.linear import (
    apply_linear,
    apply_linear_gelu,
    is_plain,
    linear,
    linear_backward,
)
from contnet_mm.models.mode import Mode


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, applied to each token.

    Args:
        channels: Width C of the tokens.
        hidden_channels: Width between the layers.
        drop_rate: Dropout after each layer.
    """

    def __init__(self, channels: int, hidden_channels: int, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor, mode: Mode = Mode.PLAIN) -> Tensor:
        """Transform tokens, [B, L, C] -> [B, L, C].

        With ``Mode.TRAINING`` the backward pass computes GELU's result again, which is not kept;
        with ``Mode.INFERENCE`` GELU is computed together with the first layer.
        """
        has_dropout = self.training and self.drop_rate > 0
        if mode is Mode.TRAINING and is_plain(self.fc2) and not has_dropout:
            hidden = apply_linear(self.fc1, x)
            weight, bias = self.fc2.weight, self.fc2.bias
            return _GeluLinear.apply(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype))
        x = apply_linear_gelu(self.fc1, x, fuse=mode is Mode.INFERENCE)
        x = F.dropout(x, self.drop_rate, self.training)
        return F.dropout(apply_linear(self.fc2, x), self.drop_rate, self.training)


class _GeluLinear(torch.autograd.Function):
    """GELU and a linear layer; only the argument of GELU is kept for the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear(F.gelu(hidden), weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        hidden, weight, _ = inputs
        ctx.save_for_backward(hidden, weight)
        ctx.save_for_forward(hidden, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        x_grad, *grads = linear_backward(grad, F.gelu(hidden), weight, needed)
        hidden_grad = torch.ops.aten.gelu_backward(x_grad, hidden) if needed[0] else None
        return hidden_grad, *grads

    @staticmethod
    def jvp(ctx, hidden_tangent: Tensor, weight_tangent: Tensor | None, bias_tangent) -> Tensor:
        hidden, weight = ctx.saved_tensors
        # The backward pass of GELU multiplies with its derivative.
        x_tangent = torch.ops.aten.gelu_backward(hidden_tangent, hidden)
        out = F.linear(x_tangent, weight, bias_tangent)
        return out if weight_tangent is None else out + F.linear(F.gelu(hidden), weight_tangent)
