"""The arguments of a ConTNet that stands in for another backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from operator import mul

from mmengine.config import ConfigDict
from torch import nn

from contnet_mm.models.arch import NUM_STAGES
from contnet_mm.swap.edit import Swap, SwapError
from contnet_mm.swap.features import Feature

STRIDES = (4, 8, 16, 32)  # of ConTNet's maps, as of a ResNet's
DEFAULTS = dict(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), out_indices=(0, 1, 2, 3))
BATCH_NORMS = ('BN', 'BN2d', 'SyncBN', 'MMSyncBN')
# What a backbone of the libraries may add to its network that ConTNet has no counterpart of.
EXTRAS = ('dcn', 'plugins', 'conv_cfg', 'sac', 'rfp_inplanes', 'output_img', 'gen_attention')


def is_resnet(module: nn.Module) -> bool:
    """Return whether a backbone is one of the libraries' ResNets, or derived from one."""
    return any(kind.__name__ == 'ResNet' for kind in type(module).__mro__)


def match_strides(
    swap: Swap,
    module: nn.Module,
    features: Sequence[Feature],
    options: Mapping[str, object],
    pooled: bool,
) -> dict[str, object]:
    """Return ``strides``, ``dilations`` and ``out_indices`` that give maps of the same strides.

    Args:
        swap: Takes the warnings.
        module: The old backbone.
        features: What it gives.
        options: Arguments that the user wants, which stand over all else.
        pooled: Whether its last map is averaged at once, so that its stride does not matter.

    Returns:
        Those that are not ConTNet's defaults.

    Raises:
        SwapError: If no ConTNet gives maps of these strides.
    """
    name, wanted = type(module).__name__, [feature.stride for feature in features]
    if 'out_indices' in options or 'strides' in options:
        return {}
    if not any(wanted) or (pooled and len(wanted) == 1):  # vectors have no stride
        if wanted[-1] not in (0, STRIDES[-1]):
            swap.add_warning(
                f'the last map has stride {STRIDES[-1]}, where that of {name} had '
                f'{wanted[-1]}: small images leave few places to average'
            )
        return dict(out_indices=(NUM_STAGES - 1,))
    chosen = _copy_resnet(module, wanted) or _find_strides(swap, name, wanted)
    return {key: value for key, value in chosen.items() if value != DEFAULTS[key]}


def _copy_resnet(module: nn.Module, wanted: Sequence[int]) -> dict[str, tuple] | None:
    """Return the arguments of a ResNet, if they mean the same in ConTNet."""
    if not is_resnet(module):
        return None
    strides, dilations = (
        (*getattr(module, key), *DEFAULTS[key][len(module.strides) :])
        for key in ('strides', 'dilations')
    )
    indices = tuple(module.out_indices)
    if strides[0] != 1 or output_strides(strides, indices) != tuple(wanted):
        return None
    return dict(strides=strides, dilations=dilations, out_indices=indices)


def _find_strides(swap: Swap, name: str, wanted: Sequence[int]) -> dict[str, tuple]:
    strides, dilations, indices = DEFAULTS.values()
    if len(wanted) == NUM_STAGES and all(wanted):
        strides = (1, *(after // before for before, after in pairwise(wanted)))
        # A stage that does not shrink the map looks as far by dilation, as in a ResNet.
        dilations = tuple(max(1, full // real) for full, real in zip(STRIDES, wanted, strict=True))
    else:
        indices = tuple(STRIDES.index(stride) for stride in wanted if stride in STRIDES)
    is_ordered = indices == tuple(sorted(set(indices)))
    if min(strides) < 1 or not is_ordered or output_strides(strides, indices) != tuple(wanted):
        raise SwapError(
            f'the maps of {name} have strides {join(wanted)}; those of ConTNet have 4, 8, 16 and '
            '32, each one once, or all four with the last ones dilated'
        )
    if indices[-1] < NUM_STAGES - 1:
        if len(wanted) == 1:  # part of a network in place of a whole one
            raise SwapError(
                f'the only map of {name} has stride {wanted[0]}, which stage of ConTNet should '
                'give it is a choice: make it with --backbone-option out_indices=... and '
                'strides=..., dilations=...'
            )
        swap.add_warning(
            f'{name} gives maps of strides {join(wanted)}: ConTNet stops after stage '
            f'{indices[-1] + 1} of 4'
        )
    return dict(strides=strides, dilations=dilations, out_indices=indices)


def output_strides(strides: Sequence[int], indices: Sequence[int]) -> tuple[int, ...]:
    """Return the strides in pixels of ConTNet's maps."""
    reached = [*accumulate(strides, mul, initial=STRIDES[0])][1:]
    return tuple(reached[i] for i in indices)


def inherit_options(
    swap: Swap, module: nn.Module, cfg: ConfigDict | dict, from_weights: bool
) -> dict[str, object]:
    """Return arguments for freezing, norms and checkpointing where they mean the same in ConTNet.

    Args:
        swap: Takes the warnings.
        module: The old backbone.
        cfg: Its config.
        from_weights: Whether training starts from ImageNet weights.
    """
    name, taken = type(module).__name__, {}
    in_channels = cfg.get('in_channels', 3)
    if isinstance(in_channels, int) and in_channels != 3:
        taken['in_channels'] = in_channels
    frozen = getattr(module, 'frozen_stages', -1)
    if not is_resnet(module) and not all(p.requires_grad for p in module.parameters()):
        swap.add_warning(
            f'frozen_stages={frozen} counts parts of {name}, and nothing is frozen now; say it by '
            '--backbone-option frozen_stages=...'
        )
    elif is_resnet(module) and isinstance(frozen, int) and frozen >= 0:
        taken['frozen_stages'] = min(frozen, NUM_STAGES)
    old_norm = getattr(module, 'norm_cfg', None) or {}
    fixed = getattr(module, 'norm_eval', False) is True
    norm_cfg = _inherit_norm(old_norm, from_weights)
    if norm_cfg is not None:
        taken['norm_cfg'] = norm_cfg
    elif old_norm.get('type') == 'GN':
        fixed = True  # whoever takes group norm has few images for each GPU
        swap.add_warning(
            "the backbone's group norm became batch norm with fixed statistics (norm_eval), for "
            'which alone ConTNet has ImageNet weights'
        )
    if fixed:
        taken['norm_eval'] = True
    if getattr(module, 'with_cp', cfg.get('with_cp')) is True:
        taken['with_cp'] = True
    extras = [key for key in EXTRAS if cfg.get(key)]
    if extras:
        swap.add_warning(f'{name} had {join(extras)}, which ConTNet has nothing to match')
    return taken


def _inherit_norm(norm_cfg: Mapping, from_weights: bool) -> dict | None:
    kind = norm_cfg.get('type')
    if kind in BATCH_NORMS:
        # Another eps would change what the weights compute; requires_grad=True is the default.
        kept = {
            key: value
            for key, value in norm_cfg.items()
            if key != 'eps' and (key, value) != ('requires_grad', True)
        }
        return None if kept == dict(type='BN') else kept
    return dict(norm_cfg) if kind == 'GN' and not from_weights else None


def join(values: Sequence[object]) -> str:
    """Return values as a list in a sentence: ``4, 8 and 16``."""
    *rest, last = map(str, values)
    return f'{", ".join(rest)} and {last}' if rest else last
