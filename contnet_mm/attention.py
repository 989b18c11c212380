"""What an encoder does per window: adding positions and mixing values, in pure functions.

Shapes: T tokens in the order of :func:`~contnet_mm.windows.token_order`, C channels, n windows of
one shape with N tokens each, p the side of a whole window, P = p * p.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from contnet_mm.windows import Windows, map_windows, places

# The memory-efficient kernel puts the batch on a grid axis of CUDA that ends here.
MAX_WINDOWS = 65535


def add_position(
    tokens: Tensor, table: Tensor, windows: Sequence[Windows], side: int, inner: int
) -> Tensor:
    """Add to each token what the table says for its place in its window.

    Args:
        tokens: Tokens, [T, C].
        table: Values by place, row by row, [P, C].
        windows: What the tokens are.
        side: Side p of the windows that the table is for.
        inner: Side of the windows nested in them.

    Returns:
        Tokens, [T, C].
    """

    def add(part: Tensor, group: Windows) -> Tensor:
        place = places(side, group.height, group.width, inner, table.device)
        return part + table[place].to(part.dtype)  # under autocast the tokens keep their precision

    return map_windows(add, tokens, windows, side)


def add_position_backward(
    grad: Tensor, windows: Sequence[Windows], side: int, inner: int
) -> Tensor:
    """Gradient of the table of :func:`add_position`, [T, C] -> [P, C]."""
    out = grad.new_zeros(side * side, grad.shape[-1])

    def collect(part: Tensor, group: Windows) -> Tensor:
        place = places(side, group.height, group.width, inner, grad.device)
        out[place] += part.sum(0)  # the places of one window differ, so none is lost
        return part[..., :0]

    map_windows(collect, grad, windows, side)
    return out


def mix_windows(
    qkv: Tensor,
    bias: Tensor | None,
    windows: Sequence[Windows],
    side: int,
    inner: int,
    num_heads: int,
    drop_rate: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mix the values of each window by the similarity of queries and keys.

    Args:
        qkv: Queries, keys and values of each token, [T, 3 * C].
        bias: Added to the logits, by place of query and key, row by row, [heads, P, P], or None.
        windows: What the tokens are.
        side: Side p of the windows to attend in.
        inner: Side of the windows nested in them.
        num_heads: Number of heads; divides C.
        drop_rate: Dropout of the attention weights.
        generator: Of the random numbers that say what is dropped; None for the default one.

    Returns:
        Mixed values, [T, C].
    """

    def mix(part: Tensor, group: Windows) -> Tensor:
        q, k, v = split_heads(part, num_heads)
        local = _bias_of(group, bias, side, inner, q.dtype)
        out = _attend(q, k, v, local, drop_rate, generator)
        return out.transpose(1, 2).reshape(*part.shape[:2], part.shape[2] // 3)

    return map_windows(mix, qkv, windows, side)


def mix_windows_backward(
    grad: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    windows: Sequence[Windows],
    side: int,
    inner: int,
    num_heads: int,
    drop_rate: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of :func:`mix_windows`, which computes the attention weights again.

    Args:
        grad: Of the result, [T, C].
        qkv: As there.
        bias: As there.
        windows: As there.
        side: As there.
        inner: As there.
        num_heads: As there.
        drop_rate: As there.
        generator: In the state that it had there.

    Returns:
        Gradients of ``qkv``, [T, 3 * C], and of ``bias``, [heads, P, P], or None.
    """
    bias_grad = None if bias is None else torch.zeros_like(bias)

    def backward(part: Tensor, group: Windows, out_grad: Tensor) -> Tensor:
        q, k, v = split_heads(part, num_heads)
        out_grad = out_grad.unflatten(-1, (num_heads, q.shape[-1])).transpose(1, 2)
        local = _bias_of(group, bias, side, inner, q.dtype)
        *grads, logits_grad = _explicit_backward(out_grad, q, k, v, local, drop_rate, generator)
        if bias_grad is not None:
            place = places(side, group.height, group.width, inner, bias.device)
            bias_grad[:, place[:, None], place] += logits_grad.sum(0).to(bias.dtype)
        return torch.stack([x.transpose(1, 2) for x in grads], dim=2).reshape(part.shape)

    return map_windows(backward, qkv, windows, side, grad.to(qkv.dtype)), bias_grad


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of queries, keys and values, [n, N, 3 * C] -> [n, heads, N, C / heads] each."""
    qkv = qkv.view(*qkv.shape[:2], 3, num_heads, qkv.shape[-1] // 3 // num_heads)
    return qkv.permute(2, 0, 3, 1, 4).unbind()


def _bias_of(
    group: Windows, bias: Tensor | None, side: int, inner: int, dtype: torch.dtype
) -> Tensor | None:
    """Bias of windows that may be smaller than a whole one, [1, heads, N, N]."""
    if bias is None:
        return None
    place = places(side, group.height, group.width, inner, bias.device)
    # A bias of another dtype than the queries is read wrongly by some fused kernels.
    return bias[:, place[:, None], place].to(dtype).unsqueeze(0)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    drop_rate: float,
    generator: torch.Generator | None,
) -> Tensor:
    if q.device.type == 'cpu' or generator is not None:
        # In three steps, which on a CPU is faster than the fused kernel where windows are small.
        weights = _drop(_weights(q, k, bias), drop_rate, generator)
        return torch.matmul(weights, v)
    if len(q) <= MAX_WINDOWS:
        return _fused(q, k, v, bias, drop_rate)
    runs = zip(*(x.split(MAX_WINDOWS) for x in (q, k, v)), strict=True)
    return torch.cat([_fused(*run, bias, drop_rate) for run in runs])


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    logits = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return (logits if bias is None else logits + bias).softmax(-1)


def _drop(x: Tensor, drop_rate: float, generator: torch.Generator | None) -> Tensor:
    if not drop_rate:
        return x
    if generator is None:
        return F.dropout(x, drop_rate, True)
    kept = torch.empty_like(x).bernoulli_(1 - drop_rate, generator=generator)
    return x * kept / (1 - drop_rate)


def _explicit_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    drop_rate: float,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the logits."""
    weights = _weights(q, k, bias)
    state = None if generator is None else generator.get_state()
    v_grad = torch.matmul(_drop(weights, drop_rate, generator).transpose(-1, -2), grad)
    if generator is not None:
        generator.set_state(state)  # the same are dropped once more
    logits_grad = _drop(torch.matmul(grad, v.transpose(-1, -2)), drop_rate, generator)
    logits_grad = torch._softmax_backward_data(logits_grad, weights, -1, weights.dtype)
    scale = q.shape[-1] ** -0.5
    q_grad = torch.matmul(logits_grad, k).mul_(scale)
    k_grad = torch.matmul(logits_grad.transpose(-1, -2), q).mul_(scale)
    return q_grad, k_grad, v_grad, logits_grad


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, drop_rate: float) -> Tensor:
    with _backends():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop_rate)


def _backends() -> AbstractContextManager:
    """All but cuDNN's, which plans anew for each number of windows: a second for each image size.

    torch before 2.3 has no such backend, and no such switch.
    """
    if not hasattr(torch.nn, 'attention'):
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )
