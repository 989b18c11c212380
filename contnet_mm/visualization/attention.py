"""Attention weights of single windows, computed again from what their layers get."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from contnet_mm.models.contnet import STEM_STRIDE, ConTNet
from contnet_mm.models.encoder import WindowAttention
from contnet_mm.models.window_attention import split_heads
from contnet_mm.models.window_layout import WindowLayout


@dataclass(frozen=True)
class AttentionInWindow:
    """Attention of one window.

    Args:
        weights: Of each query for each key, [heads, N, N]; rows sum to 1.
        tokens: Number of each of the N tokens in the map, counted row by row, [N].
        query: Index among these tokens of the one that was asked for.
        map_size: Height and width of the map in tokens.
        stride: Pixels of the image per token.
    """

    weights: Tensor
    tokens: Tensor
    query: int
    map_size: tuple[int, int]
    stride: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Edges of the window in pixels: top, left, bottom, right."""
        rows, columns = self.tokens // self.map_size[1], self.tokens % self.map_size[1]
        edges = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        return tuple(int(edge) * self.stride for edge in edges)

    def of_query(self) -> Tensor:
        """Return the mean over heads of the query's weights, as a map of the window, [h, w]."""
        top, left, bottom, right = (edge // self.stride for edge in self.box)
        weights = torch.zeros(bottom - top, right - left)
        rows, columns = self.tokens // self.map_size[1], self.tokens % self.map_size[1]
        weights[rows - top, columns - left] = self.weights[:, self.query].mean(0)
        return weights


def attention_weights(
    attn: WindowAttention, x: Tensor, layout: WindowLayout, token: int
) -> tuple[Tensor, Tensor]:
    """Compute the attention weights of the window that a token lies in.

    No way to compute attention keeps them (see :class:`~contnet_mm.models.window_layout.Way`), and
    a GPU's kernels never hold them.

    Args:
        attn: The layer.
        x: What it gets, [1, L, C] in the order of ``layout``.
        layout: Layout of the tokens.
        token: Number of the token in the map, counted row by row.

    Returns:
        Weights, query by key, [heads, N, N], and where their N tokens are in ``x``, [N].
    """
    position_index = layout.windows[attn.window_size].position_index
    starts = [*(position_index == 0).nonzero().flatten().tolist(), x.shape[1]]
    index = token if layout.inverse is None else int(layout.inverse[token])
    start = max(first for first in starts if first <= index)
    end = min(first for first in starts if first > index)
    q, k, _ = split_heads(attn.qkv(x[:, start:end]), attn.num_heads)
    logits = q[0] @ k[0].transpose(-1, -2) * q.shape[-1] ** -0.5
    if attn.position is not None:
        here = position_index[start:end].long()
        logits = logits + attn.position.row_by_row()[:, here[:, None], here]
    return logits.softmax(-1), torch.arange(start, end, device=x.device)


def attention_at(
    backbone: nn.Module, image: Tensor, row: int, column: int
) -> list[tuple[AttentionInWindow, AttentionInWindow]]:
    """Return the attention around a pixel in the last block of each stage.

    Args:
        backbone: A ConTNet.
        image: Normalised, [1, 3, H, W].
        row: Of the pixel.
        column: Of the pixel.

    Returns:
        One pair per stage: the windows of the first and of the second encoder.

    Raises:
        ValueError: If the backbone is no ConTNet, or the pixel is not in the image.
    """
    if not isinstance(backbone, ConTNet):
        raise ValueError(f'attention is that of ConTNet, and the backbone is {type(backbone)}')
    height, width = image.shape[2:]
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f'row {row}, column {column} is not in the image of {height} x {width}')
    found: dict[tuple[int, int], AttentionInWindow] = {}
    handles, stride = [], STEM_STRIDE
    for stage, blocks in enumerate(backbone.stages):
        stride *= backbone.strides[stage]
        for number, encoder in enumerate(blocks[-1].encoders):
            keep = partial(_keep, found, (stage, number), row, column, stride)
            handles.append(encoder.attn.register_forward_pre_hook(keep))
    try:
        # Without gradients a CPU computes a few windows at a time, each as a map of its own.
        with torch.enable_grad():
            backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    return [(found[stage, 0], found[stage, 1]) for stage in range(len(backbone.stages))]


def _keep(
    found: dict, key: object, row: int, column: int, stride: int, attn: nn.Module, inputs: tuple
) -> None:
    """Keep the weights of the window around a pixel; a hook of a layer that is about to attend."""
    x, layout = inputs
    map_size = int(layout.map_height), x.shape[1] // int(layout.map_height)
    token = row // stride * map_size[1] + column // stride
    with torch.no_grad():
        weights, indices = attention_weights(attn, x, layout, token)
    tokens = indices if layout.permutation is None else layout.permutation[indices].long()
    query = tokens.tolist().index(token)
    found[key] = AttentionInWindow(weights.cpu(), tokens.cpu(), query, map_size, stride)
