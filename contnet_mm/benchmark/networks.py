"""The backbones that are compared, each as a module that gives four maps, with random weights.

Nothing is frozen, and nothing is dropped at random but by ConT-B, whose dropout belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contnet_mm.benchmark.plan import NETWORKS, Size
from contnet_mm.models.contnet import ConTNet

CONTIGUOUS, CHANNELS_LAST = 'contiguous', 'channels_last'
MEMORY_FORMATS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}
TIMM_NAMES = {
    'resnet50': 'resnet50',
    'swin-t': 'swin_tiny_patch4_window7_224',
    'convnext-t': 'convnext_tiny',
}


@dataclass(frozen=True)
class Setting:
    """One way to build a network; the fastest of them counts.

    Args:
        source: Whose implementation: ``'contnet_mm'``, ``'torchvision'`` or ``'timm'``.
        memory_format: Of weights and images, ``'contiguous'`` or ``'channels_last'``.
        fused_attention: Of timm's Swin; None where there is no choice.
    """

    source: str
    memory_format: str = CONTIGUOUS
    fused_attention: bool | None = None

    def __str__(self) -> str:
        attention = {None: '', True: ', fused attention', False: ', unfused attention'}
        return f'{self.source}, {self.memory_format}{attention[self.fused_attention]}'


def list_settings(network: str, timm: bool | None = None) -> list[Setting]:
    """List the ways to build a network.

    ConTNet chooses its memory format itself.

    Args:
        network: One of ``NETWORKS``.
        timm: Whether timm's implementations are among them; by default if timm is installed.

    Raises:
        ValueError: If the network is unknown.
    """
    if network not in NETWORKS:
        raise ValueError(f'network {network!r} is unknown; choose among {[*NETWORKS]}')
    if network.startswith('contnet'):
        return [Setting('contnet_mm')]
    formats = (CONTIGUOUS, CHANNELS_LAST)
    settings = [Setting('torchvision', memory_format) for memory_format in formats]
    if timm is None:
        timm = find_spec('timm') is not None
    if timm:
        fused = (True, False) if network == 'swin-t' else (None,)
        settings += [Setting('timm', format_, flag) for format_ in formats for flag in fused]
    return settings


def build_network(network: str, setting: Setting, size: Size) -> nn.Module:
    """Build a network.

    Args:
        network: One of ``NETWORKS``.
        setting: One of its ``list_settings``.
        size: Of the images that it will get.

    Returns:
        A module that takes images, [B, 3, H, W], and gives four maps at strides 4, 8, 16 and 32.

    Raises:
        ModuleNotFoundError: If the library that the setting names is not installed.
    """
    torch.manual_seed(0)
    family, _, variant = network.partition('-')
    if family == 'contnet':
        arch, _, option = variant.partition('-')
        options = {
            '': {},
            'relative': dict(position='relative'),
            'cp': dict(with_cp=True),
            'encoder': dict(feature_location='encoder'),
        }[option]
        net: nn.Module = ConTNet(arch.capitalize(), **options)
    elif setting.source == 'timm':
        net = _build_timm(network, setting, size)
    else:
        net = _build_torchvision(network)
    return net.to(memory_format=MEMORY_FORMATS[setting.memory_format])


class _Adapter(nn.Module):
    """A network of another library that takes images of any size and gives a tuple of maps.

    Args:
        net: Gives maps as a dict or a list.
        divisor: What it wants heights and widths to be multiples of; images are padded to them.
        channels_last: Whether its maps are [B, H, W, C].
    """

    def __init__(self, net: nn.Module, divisor: int = 1, channels_last: bool = False) -> None:
        super().__init__()
        self.net, self.divisor, self.channels_last = net, divisor, channels_last

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        bottom, right = -x.shape[2] % self.divisor, -x.shape[3] % self.divisor
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        maps = self.net(x)
        maps = maps.values() if isinstance(maps, dict) else maps
        return tuple(y.permute(0, 3, 1, 2) if self.channels_last else y for y in maps)


def _build_torchvision(network: str) -> nn.Module:
    from torchvision.models import convnext_tiny, resnet50, swin_t
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.ops import StochasticDepth

    if network == 'resnet50':
        net, layers = resnet50(), [f'layer{stage}' for stage in range(1, 5)]
    else:  # down-sampling and stages in turn
        net, layers = (swin_t if network == 'swin-t' else convnext_tiny)().features, '1357'
    for module in net.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0
    maps = IntermediateLayerGetter(net, {name: name for name in layers})
    return _Adapter(maps, channels_last=network == 'swin-t')


def _build_timm(network: str, setting: Setting, size: Size) -> nn.Module:
    import timm
    from timm.layers import set_fused_attn

    options, divisor = dict(out_indices=(0, 1, 2, 3), drop_path_rate=0.0), 1
    if network == 'resnet50':
        options = dict(out_indices=(1, 2, 3, 4))  # 0 is the stem, at stride 2
    elif network == 'swin-t':
        divisor = 4  # pixels of a patch
        options['img_size'] = tuple(-(-n // divisor) * divisor for n in (size.height, size.width))
    # Fused attention of Swin counts as experimental.
    set_fused_attn(setting.fused_attention is not False, experimental=True)
    net = timm.create_model(TIMM_NAMES[network], pretrained=False, features_only=True, **options)
    return _Adapter(net, divisor, channels_last=network == 'swin-t')
