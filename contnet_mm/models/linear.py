"""Linear layers, which run as convolutions where that is faster, and their gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contnet_mm.models.mode import is_compiling, is_tracing

HAS_AUTOCAST_BY_DEVICE = hasattr(torch.amp, 'is_autocast_available')  # torch 2.4
# Smaller convolutions go to a library other than oneDNN.
MIN_ELEMENTS = 20480
# An operator of Inductor's, with the same arguments since torch 2.0.
HAS_FUSED_GELU = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, '_convolution_pointwise'
)


def has_hooks(module: nn.Module) -> bool:
    """Tell whether calling a module calls hooks, its own or those of all modules."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    hooks += (module._backward_hooks, module._backward_pre_hooks)
    of_all = nn.modules.module  # torch 2.1 has no function that asks for these
    hooks += (of_all._global_forward_hooks, of_all._global_forward_pre_hooks)
    hooks += (of_all._global_backward_hooks, of_all._global_backward_pre_hooks)
    return any(hooks)


def is_plain(layer: nn.Module) -> bool:
    """Tell whether calling a linear layer is nothing but ``F.linear`` of its weight and bias.

    Hooks, pruning, parametrisations and quantised layers need the call itself, and some profilers
    replace ``forward``.
    """
    return type(layer) is nn.Linear and not has_hooks(layer) and 'forward' not in layer.__dict__


def apply_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to tokens, [B, L, in_features] -> [B, L, out_features]."""
    if runs_as_convolution(x) and is_plain(layer):
        return linear(x, layer.weight, layer.bias)
    return layer(x)


def apply_linear_gelu(layer: nn.Linear, x: Tensor, fuse: bool) -> Tensor:
    """Apply a linear layer and a GELU to tokens, [B, L, in_features] -> [B, L, out_features].

    ``fuse`` computes both in one operation where there is one, which has no gradient.
    """
    if not (fuse and HAS_FUSED_GELU and runs_as_convolution(x) and is_plain(layer)):
        return F.gelu(apply_linear(layer, x))
    return _from_map(
        torch.ops.mkldnn._convolution_pointwise(
            *(_to_map(x), layer.weight[:, :, None, None], layer.bias),
            *([0, 0], [1, 1], [1, 1], 1, 'gelu', [], 'none'),
        ),
        x,
    )


def runs_as_convolution(x: Tensor) -> bool:
    """Tell whether a linear layer is faster as a 1x1 convolution: in float32 on a CPU.

    oneDNN, which computes convolutions, uses the whole width of AVX-512 on CPUs of any maker. The
    library behind ``F.linear`` may use half of it, and copies the bias into the result first. In
    bfloat16 oneDNN computes both.
    """
    return (
        x.device.type == 'cpu'
        and x.dtype == torch.float32
        and not _is_autocast_on_cpu()
        and not is_tracing()  # a traced network shall hold its linear layers
        and x.numel() > MIN_ELEMENTS
        # Inductor of torch 2.11 cannot order the strides of its gradients at unknown sizes.
        and not (is_compiling() and torch.is_grad_enabled())
    )


def _is_autocast_on_cpu() -> bool:
    # torch.compile (2.11) cannot trace autocast_dtype.
    if HAS_AUTOCAST_BY_DEVICE:
        return torch.is_autocast_enabled('cpu')
    return torch.is_autocast_cpu_enabled()


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype that products are computed in under autocast; None without autocast."""
    if HAS_AUTOCAST_BY_DEVICE:
        if not torch.amp.is_autocast_available(device_type):
            return None
        enabled = torch.is_autocast_enabled(device_type)
        return torch.get_autocast_dtype(device_type) if enabled else None
    if device_type == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``F.linear``, [B, L, in_features] -> [B, L, out_features]."""
    if not runs_as_convolution(x):
        return F.linear(x, weight, bias)
    return _from_map(F.conv2d(_to_map(x), weight[:, :, None, None], bias), x)


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of :func:`linear`, by operations that can be differentiated again.

    ``grad`` is that of the result, [B, L, out_features]. ``needed`` tells which gradients are
    needed, of ``x``, ``weight`` and the bias; the others may be None.
    """
    if runs_as_convolution(x):
        x_grad, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
            _to_map(grad),
            _to_map(x),
            weight[:, :, None, None],
            [len(weight)],
            *([1, 1], [0, 0], [1, 1], False, [0, 0], 1),
            list(needed),
        )
        x_grad = _from_map(x_grad, x) if needed[0] else None
        weight_grad = weight_grad.flatten(1) if needed[1] else None
        return x_grad, weight_grad, bias_grad if needed[2] else None
    rows = grad.flatten(0, -2)
    x_grad = grad @ weight if needed[0] else None
    weight_grad = rows.t() @ x.flatten(0, -2) if needed[1] else None
    return x_grad, weight_grad, rows.sum(0) if needed[2] else None


def _to_map(x: Tensor) -> Tensor:
    """View tokens as one channels-last map, [B, L, C] -> [1, C, B * L, 1]."""
    return x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)


def _from_map(x: Tensor, like: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(*like.shape[:-1], x.shape[1])
