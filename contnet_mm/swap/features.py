"""Measures what a backbone or neck gives, by building it and running it on a small image."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from contnet_mm.swap.changes import RunError, SwapError
from contnet_mm.swap.task import type_name
from contnet_mm.swap.trial.shrink import use_torch_norms
from contnet_mm.swap.trial.verify import failing

# Pixels on each side of the image, tried in turn: strides divide the first, networks for one size
# mostly take the second, and necks that go on shrinking need the third.
SIZES = (128, 224, 512)


@dataclass(frozen=True)
class Feature:
    """One output of a backbone or neck.

    Args:
        channels: Its channels.
        height: Rows of the map for an image of ``SIZES``; 0 for a vector.
        stride: Pixels of the image for one of the map; 0 for a vector.
    """

    channels: int
    height: int
    stride: int

    @property
    def is_vector(self) -> bool:
        """Whether it is one vector for each image."""
        return not self.stride


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


def run(module: nn.Module, inputs: object) -> list[Tensor]:
    """Run a backbone on an image, or a neck on maps.

    Returns:
        The outputs, [B, C, H, W] each, or [B, C] from what pools.

    Raises:
        RunError: If it does not run.
        SwapError: If it gives something else.
    """
    maps = [inputs] if isinstance(inputs, Tensor) else inputs
    shapes = ', '.join('x'.join(map(str, x.shape[1:])) for x in maps)
    with failing(f'running {type(module).__name__} on {shapes}', RunError):
        outputs = module(inputs)
    return list_tensors(outputs, type(module).__name__)


def list_tensors(outputs: object, name: str) -> list[Tensor]:
    """Return outputs as a list of maps or vectors.

    Raises:
        SwapError: If there is anything else among them.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    plain = isinstance(outputs, (list, tuple)) and len(outputs) > 0
    if not plain or not all(isinstance(x, Tensor) and x.dim() in (2, 4) for x in outputs):
        raise SwapError(
            f'{name} gives {describe(outputs)}; ConTNet gives maps [B, C, H, W], and what reads '
            'the one cannot read the other'
        )
    return list(outputs)


def measure(outputs: Sequence[Tensor], size: int) -> list[Feature]:
    """Tell channels and strides of outputs for an image of a size in pixels."""
    return [
        Feature(x.shape[1], x.shape[2], round(size / x.shape[2]))
        if x.dim() == 4
        else Feature(x.shape[1], 0, 0)
        for x in outputs
    ]


def describe(outputs: object) -> str:
    """Return what outputs are, for an error."""
    if isinstance(outputs, Tensor):
        return f'[{", ".join(map(str, outputs.shape))}]'
    if isinstance(outputs, (list, tuple)):
        return f'({", ".join(map(describe, outputs))})'
    return type(outputs).__name__
