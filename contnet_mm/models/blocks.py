"""Parts of ConTNet that hold convolutions: norms, the stem, the ConT block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from contnet_mm.models.encoder import Encoder
from contnet_mm.models.recompute import recompute
from contnet_mm.models.windows import padding_mask, to_map, to_windows
from contnet_mm.registry import MODELS
from contnet_mm.utils.checks import check_flag


def channels_last(x: Tensor) -> Tensor:
    """Bring a map into channels-last memory, in a way that ``torch.func.vmap`` takes."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def build_norm(norm_cfg: dict, channels: int) -> nn.Module:
    """Build a norm layer.

    Args:
        norm_cfg: ``type`` (``'BN'``, ``'SyncBN'``, or a type of MMEngine's registry),
            ``requires_grad``, and further arguments of the layer.
        channels: Number of channels it normalises.

    Raises:
        TypeError: If ``norm_cfg`` is not a dict with a ``type``.
        ValueError: If the type is not known.
    """
    if not isinstance(norm_cfg, dict) or not isinstance(norm_cfg.get('type'), (str, type)):
        raise TypeError(
            f"norm_cfg must be a dict with a name or a class as type, such as dict(type='BN'), "
            f'got {norm_cfg!r}'
        )
    cfg = dict(norm_cfg)
    kind = cfg.pop('type')
    requires_grad = check_flag('norm_cfg requires_grad', cfg.pop('requires_grad', True))
    # These two work without mmcv, which is what puts norm layers into the registry.
    layer = {'BN': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm}.get(kind, kind)
    if isinstance(layer, str):
        with MODELS.switch_scope_and_registry(None) as registry:  # of the default scope
            layer = registry.get(layer)
    if layer is None:
        raise ValueError(
            f"norm_cfg type {kind!r} is unknown: it must be 'BN', 'SyncBN' or in MMEngine's "
            'registry (import mmcv.cnn for its norm layers)'
        )
    if issubclass(layer, nn.GroupNorm):
        norm = layer(num_channels=channels, **cfg)
    else:
        norm = layer(channels, **cfg)
    return norm.requires_grad_(requires_grad)


def build_stem(in_channels: int, channels: int, deep: bool, norm_cfg: dict) -> nn.Sequential:
    """Build the stem: [B, in_channels, H, W] -> [B, channels, ceil(H / 4), ceil(W / 4)].

    The plain one has neither norm nor activation; the first block starts with both.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if deep:
        widths = (in_channels, channels // 2, channels // 2, channels)
        for i, stride in enumerate((2, 1, 1), start=1):
            layers[f'conv{i}'] = nn.Conv2d(
                widths[i - 1], widths[i], 3, stride=stride, padding=1, bias=False
            )
            layers[f'norm{i}'] = build_norm(norm_cfg, widths[i])
            layers[f'relu{i}'] = nn.ReLU()
    else:
        layers['conv'] = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
    layers['pool'] = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(layers)


class ConTBlock(nn.Module):
    """ConT block: two window encoders and a convolution (paper section 3.1).

    ``y = ReLU(BN(x)); r = encoders(y); out = conv(r) + shortcut``, where the shortcut of an
    ordinary block is ``x``, and that of the last block of a stage, which changes the width, a 1x1
    convolution of ``y``.

    Args:
        channels: Width C of the input.
        out_channels: Width of the output; None builds neither convolution nor shortcut.
        norm_cfg: See :func:`build_norm`.
        with_cp: Recompute the encoders in the backward pass instead of keeping their activations.
        window_sizes: Of the first and the second encoder; one divides the other.
        kernel_size: Kernel size of the convolution, 1 or 3.
        stride: Stride of the output.
        dilation: Dilation of the convolution.
        avg_down: Shrink the shortcut by average pooling, not by the stride of its convolution.
        dense: Compute the sum of convolution and shortcut at stride 1, as the feature map, and take
            the output from it.
        out_drop_rate: Dropout of the output.
        **encoder_cfg: Further arguments of :class:`~contnet_mm.models.encoder.Encoder`.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None,
        norm_cfg: dict,
        with_cp: bool,
        window_sizes: tuple[int, int],
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        avg_down: bool = False,
        dense: bool = False,
        out_drop_rate: float = 0.0,
        **encoder_cfg,
    ) -> None:
        super().__init__()
        self.with_cp, self.out_drop_rate = with_cp, out_drop_rate
        self.stride, self.avg_down, self.dense = stride, avg_down, dense
        self.outer, self.inner = max(window_sizes), min(window_sizes)
        self.norm = build_norm(norm_cfg, channels)
        self.encoders = nn.ModuleList(
            Encoder(channels, size, self.inner, **encoder_cfg) for size in window_sizes
        )
        self.conv = self.downsample = None
        if out_channels is None:
            return
        stride = 1 if dense else stride
        padding = dilation * (kernel_size // 2)
        options = dict(stride=stride, padding=padding, dilation=dilation, bias=False)
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, **options)
        if out_channels != channels:
            stride = 1 if avg_down else stride
            self.downsample = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)

    def padding_masks(self, x: Tensor) -> list[Tensor | None]:
        """Return the mask of each encoder for maps of the size of ``x``, [B, any C, H, W]."""
        masks = {p: padding_mask(x, p, self.outer, self.inner) for p in (self.inner, self.outer)}
        return [masks[encoder.window_size] for encoder in self.encoders]

    def forward(self, x: Tensor, masks: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor]:
        """Compute the block.

        Args:
            x: Map, [B, C, H, W].
            masks: See :meth:`padding_masks`.

        Returns:
            The output, [B, out_channels, ceil(H / stride), ceil(W / stride)] or None; and the
            feature map, [B, out_channels, H, W] if ``dense``, otherwise [B, C, H, W].
        """
        y = F.relu(self.norm(x))
        if self.with_cp and self.training:  # not the norm: it would update its statistics twice
            has_dropout = self.encoders[0].ffn.drop_rate > 0
            encoded = recompute(self.encode, y, masks, has_dropout=has_dropout)
        else:
            encoded = self.encode(y, masks)
        if self.conv is None:
            return None, encoded
        residual, shortcut = self.conv(encoded), x
        if self.downsample is not None:
            shortcut = self.downsample(y if self.dense else self._pool(y))
        out = F.dropout(residual + shortcut, self.out_drop_rate, self.training)
        if not self.dense:
            return out, encoded
        if self.avg_down and self.stride > 1:  # pooling and a 1x1 convolution commute
            return self._subsample(residual) + self._pool(shortcut), out
        return self._subsample(out), out

    def _subsample(self, x: Tensor) -> Tensor:
        """Take every ``stride``-th row and column, as a strided convolution does."""
        return x if self.stride == 1 else F.avg_pool2d(x, 1, self.stride)

    def _pool(self, x: Tensor) -> Tensor:
        """Average over squares of ``stride`` pixels, if that is how the shortcut shrinks."""
        if not self.avg_down or self.stride == 1:
            return x
        return F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)

    def encode(self, y: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        """Run both encoders, [B, C, H, W] -> [B, C, H, W]."""
        tokens = to_windows(y, self.outer, self.inner)
        for encoder, mask in zip(self.encoders, masks, strict=True):
            tokens = encoder(tokens.reshape(-1, encoder.window_size**2, y.shape[1]), mask)
        return to_map(tokens, y.shape[2:], self.outer, self.inner)
