"""Attention weights of single windows, computed again from what their layers get."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from contnet_mm.models.contnet import STEM_STRIDE, ConTNet
from contnet_mm.models.windows import to_windows


@dataclass(frozen=True)
class AttentionInWindow:
    """Attention of one window.

    Args:
        weights: Of each query for each key, [heads, N, N]; rows sum to 1.
        tokens: Row and column of each of the N tokens in the map, [N, 2].
        query: Index among these tokens of the one that was asked for.
        stride: Pixels of the image per token.
    """

    weights: Tensor
    tokens: Tensor
    query: int
    stride: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Edges of the window in pixels: top, left, bottom, right."""
        edges = *self.tokens.amin(0), *(self.tokens.amax(0) + 1)
        return tuple(int(edge) * self.stride for edge in edges)

    def of_query(self) -> Tensor:
        """Return the mean over heads of the query's weights, as a map of the window, [h, w]."""
        rows, columns = (self.tokens - self.tokens.amin(0)).unbind(1)
        weights = torch.zeros(int(rows.max()) + 1, int(columns.max()) + 1)
        weights[rows, columns] = self.weights[:, self.query].mean(0)
        return weights


@torch.no_grad()
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
    found, handles, stride = [], [], STEM_STRIDE
    for blocks, own_stride in zip(backbone.stages, backbone.strides, strict=False):
        stride *= own_stride
        places = [torch.arange(-(-length // stride)) + 1 for length in (height, width)]
        places = torch.stack(torch.meshgrid(*places, indexing='ij'))[None]
        tokens = to_windows(places, blocks[-1].outer, blocks[-1].inner) - 1  # padding is at -1
        look = partial(_look, found, tokens, (row // stride, column // stride), stride)
        handles += [encoder.attn.register_forward_pre_hook(look) for encoder in blocks[-1].encoders]
    try:
        backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    return [*zip(found[::2], found[1::2], strict=True)]


def _look(
    found: list, tokens: Tensor, token: tuple[int, int], stride: int, attn: nn.Module, args: tuple
) -> None:
    """Find the attention of the window that a token lies in; a hook of a layer about to attend."""
    x = args[0]
    tokens = tokens.reshape(*x.shape[:2], 2)
    window, query = (tokens == torch.tensor(token)).all(-1).nonzero()[0]
    real = (tokens[window, :, 0] >= 0).nonzero().flatten()
    q, k, _ = attn.split_heads(attn.qkv(x[window, real][None]))
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if attn.position is not None:
        logits = logits + attn.position()[..., real[:, None], real]
    query = int((real < query).sum())
    found.append(
        AttentionInWindow(logits.softmax(-1)[0].cpu(), tokens[window, real], query, stride)
    )
