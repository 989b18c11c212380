"""The arguments of a ConTNet that stands in for another backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.config import ConfigDict
from torch import nn

from contnet_mm.models.arch import ALIASES, NUM_STAGES
from contnet_mm.swap.changes import SwapError
from contnet_mm.swap.features import Feature
from contnet_mm.swap.task import type_name

STRIDES = (4, 8, 16, 32)  # of ConTNet's maps, as of a ResNet's
PLAIN_STRIDES, PLAIN_DILATIONS = (1, 2, 2, 2), (1, 1, 1, 1)
BATCH_NORMS = ('BN', 'BN2d', 'SyncBN', 'MMSyncBN')
# What a backbone of the libraries may add to its network that ConTNet has no counterpart of.
EXTRAS = ('dcn', 'plugins', 'conv_cfg', 'sac', 'rfp_inplanes', 'output_img', 'gen_attention')


def is_resnet(module: nn.Module) -> bool:
    """Tell whether a backbone is one of the libraries' ResNets, or derived from one."""
    return any(kind.__name__ == 'ResNet' for kind in type(module).__mro__)


def place_maps(
    module: nn.Module, features: Sequence[Feature], options: Mapping[str, object], pooled: bool
) -> tuple[dict[str, object], list[str]]:
    """Choose ``strides``, ``dilations`` and ``out_indices`` that give maps of the same strides.

    Args:
        module: The old backbone.
        features: What it gives.
        options: Arguments that the user wants, which stand over all else.
        pooled: Whether its last map is averaged at once, so that its stride does not matter.

    Returns:
        Those that are not ConTNet's defaults; and what a person has to judge.

    Raises:
        SwapError: If no ConTNet gives maps of these strides.
    """
    wanted = [feature.stride for feature in features]
    if 'out_indices' in options or 'strides' in options:
        chosen, unknown = {}, []
    elif all(feature.is_vector for feature in features) or (pooled and len(features) == 1):
        chosen, unknown = dict(out_indices=(NUM_STAGES - 1,)), []
        if wanted[-1] and wanted[-1] != STRIDES[-1]:
            unknown.append(
                f'the last map has stride {STRIDES[-1]}, where that of {type(module).__name__} had '
                f'{wanted[-1]}: small images leave few places to average'
            )
    else:
        chosen, unknown = _match_strides(module, wanted)
    defaults = dict(
        strides=PLAIN_STRIDES, dilations=PLAIN_DILATIONS, out_indices=tuple(range(NUM_STAGES))
    )
    return {k: v for k, v in chosen.items() if v != defaults[k]}, unknown


def _match_strides(module: nn.Module, wanted: list[int]) -> tuple[dict[str, object], list[str]]:
    name = type(module).__name__
    if is_resnet(module):
        strides, dilations = (
            (*getattr(module, key), *rest)[:NUM_STAGES]
            for key, rest in (
                ('strides', PLAIN_STRIDES[len(module.strides) :]),
                ('dilations', PLAIN_DILATIONS[len(module.dilations) :]),
            )
        )
        indices = tuple(module.out_indices)
        if strides[0] == 1 and list(map_strides(strides, indices)) == wanted:
            return dict(strides=strides, dilations=dilations, out_indices=indices), []
    if len(wanted) == NUM_STAGES:
        indices = tuple(range(NUM_STAGES))
        strides = (1, *(b // a if a else 0 for a, b in zip(wanted, wanted[1:], strict=False)))
        # A stage that does not shrink the map looks as far by dilation, as in a ResNet.
        dilations = tuple(max(1, full // real) for full, real in zip(STRIDES, wanted, strict=True))
    else:
        indices = tuple(STRIDES.index(stride) for stride in wanted if stride in STRIDES)
        strides, dilations = PLAIN_STRIDES, PLAIN_DILATIONS
    fits = (
        min(strides) >= 1
        and len(indices) == len(wanted)
        and list(indices) == sorted(set(indices))
        and list(map_strides(strides, indices)) == wanted
    )
    if not fits:
        raise SwapError(
            f'the maps of {name} have strides {_join(wanted)}; those of ConTNet have 4, 8, 16 and '
            '32, each one once, or all four with the last ones dilated'
        )
    if indices[-1] < NUM_STAGES - 1:
        raise_if_shallow(name, wanted)
        return dict(strides=strides, dilations=dilations, out_indices=indices), [
            f'{name} gives maps of strides {_join(wanted)}: ConTNet stops after stage '
            f'{indices[-1] + 1} of 4'
        ]
    return dict(strides=strides, dilations=dilations, out_indices=indices), []


def raise_if_shallow(name: str, wanted: Sequence[int]) -> None:
    """Raise SwapError where one map alone would stand for a whole network cut short."""
    if len(wanted) == 1:
        raise SwapError(
            f'the only map of {name} has stride {wanted[0]}, which stage of ConTNet should give it '
            'is a choice: make it with --backbone-option out_indices=... and strides=..., '
            'dilations=...'
        )


def map_strides(strides: Sequence[int], indices: Sequence[int]) -> tuple[int, ...]:
    """Return the strides in pixels of ConTNet's maps."""
    total, reached = STRIDES[0], []
    for stride in strides:
        total *= stride
        reached.append(total)
    return tuple(reached[i] for i in indices if i < len(reached))


def carry_settings(
    module: nn.Module, cfg: ConfigDict | dict, from_weights: bool
) -> tuple[dict[str, object], list[str]]:
    """Take over freezing, norms and checkpointing where they mean the same in ConTNet.

    Args:
        module: The old backbone.
        cfg: Its config.
        from_weights: Whether training starts from ImageNet weights.

    Returns:
        Arguments of ConTNet; and what a person has to judge.
    """
    name, taken, unknown = type(module).__name__, {}, []
    in_channels = cfg.get('in_channels', 3)
    if isinstance(in_channels, int) and in_channels != 3:
        taken['in_channels'] = in_channels
    frozen = getattr(module, 'frozen_stages', -1)
    if is_resnet(module) and isinstance(frozen, int) and frozen >= 0:
        taken['frozen_stages'] = min(frozen, NUM_STAGES)
    elif not is_resnet(module) and not all(p.requires_grad for p in module.parameters()):
        unknown.append(
            f'frozen_stages={frozen} counts parts of {name}, and nothing is frozen now; say it by '
            '--backbone-option frozen_stages=...'
        )
    norm_cfg = _carry_norm(getattr(module, 'norm_cfg', None), from_weights)
    if norm_cfg is not None:
        taken['norm_cfg'] = norm_cfg
    fixed = getattr(module, 'norm_eval', False) is True
    if norm_cfg is None and (getattr(module, 'norm_cfg', None) or {}).get('type') == 'GN':
        fixed = True  # whoever takes group norm has few images for each GPU
        unknown.append(
            "the backbone's group norm became batch norm with fixed statistics (norm_eval), for "
            'which alone ConTNet has ImageNet weights'
        )
    if fixed:
        taken['norm_eval'] = True
    if getattr(module, 'with_cp', cfg.get('with_cp')) is True:
        taken['with_cp'] = True
    extras = [key for key in EXTRAS if cfg.get(key)]
    if extras:
        unknown.append(f'{name} had {_join(extras)}, which ConTNet has nothing to match')
    return taken, unknown


def _carry_norm(norm_cfg: Mapping | None, from_weights: bool) -> dict | None:
    kind = (norm_cfg or {}).get('type')
    if kind in BATCH_NORMS:
        # Another eps would change what the weights compute.
        kept = {key: value for key, value in norm_cfg.items() if key != 'eps'}
        if kept.get('requires_grad') is True:  # the default
            del kept['requires_grad']
        return None if kept == dict(type='BN') else kept
    return dict(norm_cfg) if kind == 'GN' and not from_weights else None


def short_name(arch: str) -> str:
    """Return the name of an arch in files: ``ti``, ``s``, ``m`` or ``b``."""
    names = {full: alias.lower() for alias, full in ALIASES.items()}
    return names.get(arch, arch.lower())


def has_weights(cfg: object) -> bool:
    """Tell whether an ``init_cfg`` loads a checkpoint."""
    cfgs = cfg if isinstance(cfg, (list, tuple)) else [cfg]
    return any(isinstance(each, dict) and type_name(each) == 'Pretrained' for each in cfgs)


def _join(values: Sequence[object]) -> str:
    *rest, last = map(str, values)
    return f'{", ".join(rest)} and {last}' if rest else last
