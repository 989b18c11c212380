"""Parts of ConTNet that hold convolutions: norms, the stem, the ConT block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from contnet_mm.models.encoder import WindowEncoders
from contnet_mm.models.linear import autocast_dtype, has_hooks
from contnet_mm.models.mode import is_compiling, is_tracing
from contnet_mm.models.window_attention import choose_way
from contnet_mm.models.window_layout import WindowLayout, window_layout
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
        kernel_size: Kernel size of the convolution, 1 or 3.
        stride: Stride of the convolution and the shortcut.
        dilation: Dilation of the convolution.
        avg_down: Shrink the shortcut by average pooling, not by the stride of its convolution.
        out_drop_rate: Dropout of the output.
        **encoder_cfg: Arguments of :class:`~contnet_mm.models.encoder.WindowEncoders`.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None,
        norm_cfg: dict,
        with_cp: bool,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        avg_down: bool = False,
        out_drop_rate: float = 0.0,
        **encoder_cfg,
    ) -> None:
        super().__init__()
        self.with_cp, self.out_drop_rate = with_cp, out_drop_rate
        self.pool_size = stride if avg_down else 1
        self.norm = build_norm(norm_cfg, channels)
        self.encoders = WindowEncoders(channels, **encoder_cfg)
        self.conv = self.downsample = None
        if out_channels is None:
            return
        self.conv = nn.Conv2d(
            channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            bias=False,
        )
        if out_channels != channels:
            self.downsample = nn.Conv2d(
                channels, out_channels, 1, stride=1 if avg_down else stride, bias=False
            )

    def forward(self, x: Tensor, layout: WindowLayout) -> tuple[Tensor | None, Tensor]:
        """Compute the block.

        Args:
            x: Map, [B, C, H, W].
            layout: Layout of its windows; see :func:`stage_layout`.

        Returns:
            The output, [B, out_channels, ceil(H / stride), ceil(W / stride)] or None, and the map
            of the second encoder, [B, C, H, W].
        """
        # Hooks may keep the norm's output, and backward hooks forbid in-place changes of it.
        y = F.relu(self.norm(x), inplace=not has_hooks(self.norm))
        # The norm stays outside, or recomputing would update its running statistics twice.
        # Inductor (torch 2.11) cannot recompute dropout.
        is_kept = layout.is_traced and self.encoders.has_dropout
        if self.with_cp and torch.is_grad_enabled() and not is_kept:
            r = checkpoint(self.encoders, y, layout, use_reentrant=False)
        else:
            r = self.encoders(y, layout)
        if self.conv is None:
            return None, r
        if self.downsample is not None:
            if self.pool_size > 1:
                y = F.avg_pool2d(y, self.pool_size, ceil_mode=True, count_include_pad=False)
            x = self.downsample(y)
        out = self.conv(r) + x
        return F.dropout(out, self.out_drop_rate, self.training), r


def stage_layout(
    blocks: Sequence[ConTBlock], size: Sequence[int], x: Tensor, compiled: bool = False
) -> WindowLayout:
    """Return the layout of the windows of a stage, which all its blocks share.

    Args:
        blocks: Blocks of the stage.
        size: Height and width of its maps.
        x: Any map of the images, for their number, device and dtype.
        compiled: Whether the blocks are compiled by themselves, without this call.
    """
    recorder = dict(is_compiling=compiled or is_compiling(), is_tracing=is_tracing())
    # Blocks that are compiled by themselves have one program for all sizes.
    may_fuse = not compiled
    # A compiler gets the layout as an input.
    make = _stage_layout_in_graph_break if recorder['is_compiling'] else _stage_layout
    return make(blocks, size, x, recorder, may_fuse)


def _stage_layout(
    blocks: Sequence[ConTBlock],
    size: Sequence[int],
    x: Tensor,
    recorder: dict[str, bool],
    may_fuse: bool,
) -> WindowLayout:
    encoders, dtype = blocks[0].encoders, autocast_dtype(x.device.type) or x.dtype
    has_dropout = any(block.encoders.has_dropout for block in blocks)
    options = (encoders.head_dim, encoders.has_bias, has_dropout)
    largest = max(encoders.window_sizes)
    is_whole = may_fuse and not any(int(length) % largest for length in size)
    way = choose_way(x.device, dtype, *options, **recorder, is_whole=is_whole)
    is_traced = any(recorder.values())
    return window_layout(*size, encoders.window_sizes, way, len(x), x.device, is_traced)


# torch.compiler.disable does the same, but imports the compiler at once: half a second more to
# import the network.
_stage_layout_in_graph_break = torch._disable_dynamo(_stage_layout)
