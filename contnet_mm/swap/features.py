"""What a backbone or neck gives, measured: it is built, and runs on a small image."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from contnet_mm.swap.edit import SwapError, walk
from contnet_mm.swap.sandbox import RunError, failing
from contnet_mm.swap.task import type_name

# Pixels on each side of the image, tried in turn: strides divide the first, networks for one size
# mostly take the second, and necks that go on shrinking need the third.
SIZES = (128, 224, 512)


class Feature(NamedTuple):
    """One output of a backbone or neck; rows and stride of a vector are 0."""

    channels: int
    height: int
    stride: int


class FeatureShapes:
    """The outputs of a part of the model, before the swap and after it, and their shapes.

    The outputs are [B, C, H, W] or [B, C] each; ``size`` is the side of the image in pixels.
    """

    def __init__(self, old_maps: Sequence[Tensor], new_maps: Sequence[Tensor], size: int) -> None:
        self.old_maps, self.new_maps, self.size = list(old_maps), list(new_maps), size
        self.old, self.new = measure(old_maps, size), measure(new_maps, size)

    def check_strides(self) -> None:
        """Raise SwapError where a map has another size than before: anchors would not fit it."""
        old, new = ([f.height for f in features] for features in (self.old, self.new))
        if old != new:
            raise SwapError(
                f'for an image of {self.size}x{self.size} the maps had {old} rows, and with '
                f'ConTNet they have {new}: what reads them expects the strides from before'
            )


def build(cfg: ConfigDict | dict) -> nn.Module:
    """Build a module from a config without looking for weights.

    Raises:
        SwapError: If it cannot be built; the message names what is missing or wrong.
    """
    cfg = copy.deepcopy(cfg)
    if 'type' not in cfg:
        raise SwapError(f'{dict(cfg)} has no type: it belongs to a library that is wrapped')
    use_torch_norms(cfg)
    with failing(f'building {type_name(cfg)}'):
        module = MODELS.build(cfg)
    for part in module.modules():
        if getattr(part, 'eps', 1) == 0:  # newer versions of torch run no norm with it
            part.eps = 1e-5
    module.eval()  # some return None
    return module


def use_torch_norms(cfg: object) -> None:
    """Put torch's SyncBN where mmcv's is, in place: only torch's is built in a single process."""
    for _, part in walk(cfg):
        if type_name(part) == 'MMSyncBN':
            part['type'] = 'SyncBN'


def run(module: nn.Module, inputs: object) -> list[Tensor]:
    """Run a backbone on an image, or a neck on maps, to outputs [B, C, H, W] or [B, C].

    Raises:
        RunError: If it does not run.
        SwapError: If it gives something else.
    """
    name = type(module).__name__
    maps = [inputs] if isinstance(inputs, Tensor) else inputs
    shapes = ', '.join('x'.join(map(str, x.shape[1:])) for x in maps)
    with failing(f'running {name} on {shapes}', RunError):
        outputs = module(inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    is_list = isinstance(outputs, (list, tuple)) and len(outputs) > 0
    if not is_list or not all(isinstance(x, Tensor) and x.dim() in (2, 4) for x in outputs):
        raise SwapError(
            f'{name} gives {format_shapes(outputs)}; ConTNet gives maps [B, C, H, W], and what '
            'reads the one cannot read the other'
        )
    return list(outputs)


def measure(outputs: Sequence[Tensor], size: int) -> list[Feature]:
    """Return channels and strides of outputs for an image of a size in pixels."""
    shapes = ((x.shape[1], x.shape[2] if x.dim() == 4 else 0) for x in outputs)
    return [Feature(width, rows, round(size / rows) if rows else 0) for width, rows in shapes]


def format_shapes(outputs: object) -> str:
    """Return what outputs are, for an error: ``([2, 1024], NoneType)``."""
    if isinstance(outputs, Tensor):
        return str(list(outputs.shape))
    if isinstance(outputs, (list, tuple)):
        return f'({", ".join(map(format_shapes, outputs))})'
    return type(outputs).__name__
