"""ConTNet, the convolution-transformer network of arXiv 2104.13497, as a multi-scale backbone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import Tensor, nn

from contnet_mm.models.arch import NUM_STAGES, resolve_arch
from contnet_mm.models.blocks import ConTBlock, build_stem, channels_last
from contnet_mm.models.position import RelativePosition
from contnet_mm.models.pretrained import PretrainedModule
from contnet_mm.registry import MODELS
from contnet_mm.utils.checks import check_choice, check_flag, check_integer, check_integers

MIN_SIZE = 32  # pixels; the stride of the last map
STEM_STRIDE = 4


@MODELS.register_module()
class ConTNet(PretrainedModule):
    """ConTNet, a convolution-transformer network (arXiv 2104.13497).

    Gives maps like a ResNet's, at strides 4, 8, 16 and 32 of the input, for any height and width
    from 32 pixels. Windows at the border are padded and padding is masked as keys, so that it
    changes nothing; at multiples of 224 the result is that of the official network.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'medium'``, ``'base'`` (or the paper's ``'Ti'``, ``'S'``,
            ``'M'``, ``'B'``), or a dict with the keys ``base_channels``, ``depths``, ``num_heads``,
            ``feedforward_channels``, ``window_sizes`` (a pair per stage), ``drop_rates`` and
            ``last_drop_rate``.
        in_channels: Channels of the image.
        strides: Stride of each stage relative to the one before; the first is 1.
        dilations: Dilation of the 3x3 convolutions of each stage.
        out_indices: Which of the four maps to return, increasing. Layers that none of them needs
            are not built.
        feature_location: Where the first three maps are taken. ``'block'``: the output of the last
            block of the stage before it is subsampled, twice as wide as the stage. ``'encoder'``:
            the output of the second encoder in that block, as wide as the stage; cheaper. The
            fourth map is the output of the network in either case.
        position: ``'absolute'`` (learned tables added to the tokens) or ``'relative'`` (learned
            bias of the logits).
        pre_norm: Normalise before each half of an encoder instead of after its sum.
        qkv_bias: Whether the projections to q, k and v have a bias.
        avg_down: Shrink shortcuts by average pooling.
        deep_stem: Three 3x3 convolutions in place of one 7x7.
        frozen_stages: Freeze the stem (0), or the stem and the stages up to this one (1 to 4); -1
            freezes nothing.
        norm_cfg: Norm at the start of each block; see :func:`~contnet_mm.models.blocks.build_norm`.
        norm_eval: Keep batch norm in eval mode while training.
        with_cp: Recompute encoders in the backward pass to save memory; the values stay the same.
        init_cfg: As in MMEngine. ``dict(type='Pretrained', checkpoint=...)`` takes the official
            files as released, our own, and classifiers, detectors and segmentors with this
            backbone, and raises unless each tensor is found.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a value that cannot be.

    Examples:
        >>> import torch
        >>> net = ConTNet('tiny').eval()
        >>> net.out_channels, net.out_strides
        ((96, 192, 384, 768), (4, 8, 16, 32))
        >>> [tuple(x.shape) for x in net(torch.zeros(1, 3, 64, 100))]
        [(1, 96, 16, 25), (1, 192, 8, 13), (1, 384, 4, 7), (1, 768, 2, 4)]
    """

    def __init__(
        self,
        arch: str | dict = 'medium',
        in_channels: int = 3,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        feature_location: str = 'block',
        position: str = 'absolute',
        pre_norm: bool = False,
        qkv_bias: bool = True,
        avg_down: bool = False,
        deep_stem: bool = False,
        frozen_stages: int = -1,
        norm_cfg: dict = dict(type='BN'),  # noqa: B006 (copied, never written to)
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(norm_cfg, norm_eval, init_cfg)
        arch = resolve_arch(arch)
        in_channels = check_integer('in_channels', in_channels, low=1)
        self.frozen_stages = check_integer('frozen_stages', frozen_stages, low=-1, high=NUM_STAGES)
        self.out_indices = _check_out_indices(out_indices)
        self.strides = check_integers('strides', strides, low=1, length=NUM_STAGES)
        self.dilations = check_integers('dilations', dilations, low=1, length=NUM_STAGES)
        if self.strides[0] != 1:
            raise ValueError(
                f'strides must start with 1, since the stem leads to stage 1, got {self.strides}'
            )
        locations = ('block', 'encoder')
        self.feature_location = check_choice('feature_location', feature_location, locations)
        self.avg_down, self.in_channels = check_flag('avg_down', avg_down), in_channels
        self.base_channels = arch['base_channels']
        check_flag('deep_stem', deep_stem)
        options = dict(
            position=check_choice('position', position, ('absolute', 'relative')),
            pre_norm=check_flag('pre_norm', pre_norm),
            qkv_bias=check_flag('qkv_bias', qkv_bias),
        )
        self._options = dict(options, avg_down=avg_down, deep_stem=deep_stem)
        self._geometry = dict(
            strides=self.strides, dilations=self.dilations, window_sizes=arch['window_sizes']
        )
        if self.out_indices[0] < NUM_STAGES - 1:  # the last map does not depend on it
            self._geometry['feature_location'] = feature_location
        self.stem = build_stem(in_channels, self.base_channels, deep_stem, norm_cfg)
        shared = dict(options, norm_cfg=norm_cfg, with_cp=check_flag('with_cp', with_cp))
        stages = [self._build_stage(i, arch, shared) for i in range(self.out_indices[-1] + 1)]
        self.stages = nn.ModuleList(stages)
        self.apply(_init_module)
        self._freeze()

    def _build_stage(self, stage: int, arch: dict, shared: dict) -> nn.ModuleList:
        channels = self.base_channels * 2**stage
        shared = dict(
            shared,
            channels=channels,
            dilation=self.dilations[stage],
            drop_rate=arch['drop_rates'][stage],
            **{k: arch[k][stage] for k in ('window_sizes', 'num_heads', 'feedforward_channels')},
        )
        last: dict = dict(out_channels=2 * channels)
        is_end = stage == self.out_indices[-1]
        if stage == NUM_STAGES - 1:
            last.update(kernel_size=1, dense=True, out_drop_rate=arch['last_drop_rate'])
        elif is_end and self.feature_location == 'encoder':  # nothing behind it is wanted
            last.update(out_channels=None)
        else:
            stride = 1 if is_end else self.strides[stage + 1]
            dense = self.feature_location == 'block' and stage in self.out_indices
            last.update(stride=stride, avg_down=self.avg_down, dense=dense)
        ordinary = [dict(out_channels=channels)] * (arch['depths'][stage] - 1)
        return nn.ModuleList(ConTBlock(**own, **shared) for own in [*ordinary, last])

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each returned map."""
        return self.channels_at(self.feature_location)

    def channels_at(self, feature_location: str) -> tuple[int, ...]:
        """Return the channels that each returned map has at a ``feature_location``."""
        widths = [2 * self.base_channels * 2**stage for stage in range(NUM_STAGES)]
        if feature_location == 'encoder':
            widths = [*(width // 2 for width in widths[:-1]), widths[-1]]
        return tuple(widths[i] for i in self.out_indices)

    @property
    def out_strides(self) -> tuple[int, ...]:
        """Stride of each returned map in pixels of the input."""
        return tuple(STEM_STRIDE * math.prod(self.strides[: i + 1]) for i in self.out_indices)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of an image batch.

        Args:
            x: Images, [B, in_channels, H, W], H and W at least 32 pixels.

        Returns:
            One map per entry of ``out_indices``, [B, out_channels[i], ceil(H / out_strides[i]),
            ceil(W / out_strides[i])], contiguous in memory as a ResNet's.

        Raises:
            ValueError: If the shape is not as above.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < MIN_SIZE:
            raise ValueError(
                f'images must be [B, {self.in_channels}, H, W] with H and W at least {MIN_SIZE}, '
                f'got {[*x.shape]}'
            )
        x, maps = self.stem(channels_last(x)), []
        for i, stage in enumerate(self.stages):
            masks = stage[0].padding_masks(x)
            for block in stage:
                x, feature = block(x, masks)
            if i in self.out_indices:
                # The network is channels-last inside, but mmcv's RoIAlign reads any memory as NCHW
                # and silently returns wrong crops.
                maps.append(feature.contiguous())
        return tuple(maps)

    def owns_key(self, key: str) -> bool:
        """Return whether a key of the whole network belongs to a part that is built here."""
        match = re.match(r'stages\.(\d+)\.(\d+)\.(\w+)', key)
        if match is None:
            return not key.startswith(('fc.', 'head.'))
        stage, block, part = int(match[1]), int(match[2]), match[3]
        if stage >= len(self.stages):
            return False
        is_last = block == len(self.stages[stage]) - 1
        is_cut = is_last and self.stages[stage][-1].conv is None
        return not (is_cut and part in ('conv', 'downsample'))

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the layer of a parameter, for layer-wise decay of the learning rate.

        The stem is layer 0, each block one more, and all behind the backbone the last.

        Args:
            param_name: Name of a parameter of this network, or of the model that holds it.
            prefix: What the names of this network start with in that model.

        Returns:
            Its layer and the number of layers.

        Raises:
            ValueError: If the name is that of no part of this network.
        """
        num_layers = sum(map(len, self.stages)) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        name = param_name[len(prefix) :]
        if name.startswith('stem.'):
            return 0, num_layers
        match = re.match(r'stages\.(\d+)\.(\d+)\.', name)
        if match is None:
            raise ValueError(
                f'param_name must be that of a parameter of ConTNet, got {param_name!r}'
            )
        stage, block = map(int, match.groups())
        return 1 + sum(map(len, self.stages[:stage])) + block, num_layers

    def _freeze(self) -> None:
        super()._freeze()
        for module in [self.stem, *self.stages][: self.frozen_stages + 1]:
            module.eval().requires_grad_(False)


def _check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    indices = check_integers('out_indices', out_indices, low=0, high=NUM_STAGES - 1)
    if not indices or list(indices) != sorted(set(indices)):
        raise ValueError(
            f'out_indices must name one or more maps in increasing order, got {indices}'
        )
    return indices


def _init_module(module: nn.Module) -> None:
    """Initialise one layer as the official network does; norms keep weight 1 and bias 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, RelativePosition):
        nn.init.trunc_normal_(module.table, std=0.02)
