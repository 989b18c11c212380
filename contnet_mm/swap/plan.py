"""The swap of a backbone for ConTNet, from config to config."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping

import torch
from mmengine.config import Config

from contnet_mm.models.arch import ALIASES, resolve_arch
from contnet_mm.models.contnet import ConTNet
from contnet_mm.swap import consumers, training
from contnet_mm.swap.backbone import inherit_options, match_strides
from contnet_mm.swap.edit import KeyPath, Swap, SwapError, find_value
from contnet_mm.swap.features import SIZES, FeatureShapes, build, measure, run
from contnet_mm.swap.pixels import fix_pixels
from contnet_mm.swap.sandbox import OddConfigError, RunError, failing, sandbox
from contnet_mm.swap.task import TASKS, kind_of, library_of, type_name

TYPE = 'contnet_mm.ConTNet'
# What decides the maps besides `arch`; a shared head has to be built alike.
SHARED_OPTIONS = ('position', 'pre_norm', 'qkv_bias', 'norm_cfg', 'norm_eval', 'with_cp')
NOT_OPTIONS = ('arch', 'init_cfg')
OPTIONS = tuple(key for key in inspect.signature(ConTNet).parameters if key not in NOT_OPTIONS)


def swap_backbone(
    cfg: Config,
    arch: str | dict = 'medium',
    checkpoint: str | None = None,
    **options: object,
) -> Config:
    """Put ConTNet in the place of a config's backbone.

    The old backbone and what follows it are built and run on a small image, so that what is put
    into the config agrees with what is there. Nothing is trained or verified beyond that; see
    :func:`contnet_mm.swap.trial.verify`.

    Args:
        cfg: Of a detector, segmentor or classifier of MMDetection, MMSegmentation or MMPretrain,
            with its ``default_scope``; it is not changed.
        arch: As ConTNet's.
        checkpoint: File with weights of ConTNet. Default: ``checkpoints/contnet-<arch>_in1k.pth``
            where the old backbone started from weights, else none.
        **options: Further arguments of ConTNet, which stand over what is inherited.

    Returns:
        The config with ConTNet; every key that has nothing to do with the backbone is as it was.

    Raises:
        SwapError: If the config cannot take ConTNet, a ValueError that says why.
        TypeError: If an option is no argument of ConTNet.
    """
    return plan_swap(cfg, arch, checkpoint, options).config


def plan_swap(
    config: Config,
    arch: str | dict = 'medium',
    checkpoint: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Swap:
    """Swap as :func:`swap_backbone`, and tell what changed, why, and what a person has to judge."""
    options = check_options(options or {})
    resolve_arch(arch)
    arch = ALIASES.get(arch, arch) if isinstance(arch, str) else arch
    with failing('reading the config', OddConfigError):
        return _plan(config, arch, checkpoint, options)


def _plan(
    config: Config, arch: str | dict, checkpoint: str | None, options: Mapping[str, object]
) -> Swap:
    root = find_root(config)
    own_size = find_value(config, (*root, 'backbone', 'img_size'), SIZES[0])
    own_size = max(own_size) if isinstance(own_size, (list, tuple)) else own_size
    for size in dict.fromkeys((*SIZES, own_size)):
        swap = Swap(copy.deepcopy(config))
        try:
            with sandbox(library_of(config)), torch.no_grad():
                _swap(swap, root, size, arch, checkpoint, options)
            return swap
        except RunError as error:
            reason = error
    raise reason


def _swap(
    swap: Swap,
    root: KeyPath,
    size: int,
    arch: str | dict,
    checkpoint: str | None,
    options: Mapping[str, object],
) -> None:
    library = library_of(swap.config)
    old_cfg = swap.get((*root, 'backbone'))
    if type_name(old_cfg) == 'ConTNet':
        raise SwapError('its backbone is ConTNet already')
    consumers.check_method(swap, root)
    old = build(old_cfg)
    in_channels = old_cfg.get('in_channels', 3)
    in_channels = in_channels if isinstance(in_channels, int) else 3
    old_maps = run(old, torch.randn(2, in_channels, size, size))
    from_weights = training.starts_from_weights(swap, root)
    inherited = inherit_options(swap, old, old_cfg, from_weights)
    necks = swap.get((*root, 'neck'))
    first = necks[0] if isinstance(necks, (list, tuple)) else necks
    pooled = library == 'mmpretrain' and (first is None or 'Pooling' in type_name(first))
    matched = match_strides(swap, old, measure(old_maps, size), options, pooled)
    new_cfg = dict(type=TYPE, arch=arch, **{**matched, **inherited, **options})
    new = build(new_cfg)
    shapes = FeatureShapes(old_maps, run(new, torch.randn(2, new.in_channels, size, size)), size)
    if checkpoint is None and from_weights:
        checkpoint = _default_checkpoint(swap, arch)
    if checkpoint is not None:
        new_cfg['init_cfg'] = dict(type='Pretrained', checkpoint=str(checkpoint))
    swap.set((*root, 'backbone'), new_cfg, f'ConTNet in place of {type_name(old_cfg)}.')
    if library == 'mmpretrain':
        consumers.fix_classifier(swap, root, shapes, old_cfg)
    else:
        shapes.check_strides()
        shapes = consumers.fix_necks(swap, root, shapes)
        shapes.check_strides()
        consumers.fix_heads(swap, root, shapes, _shared_head(new_cfg))
    training.remove_weights(swap, root)
    training.add_import(swap)
    training.fix_optimizer(swap, old, new)
    fix_pixels(swap)


def check_options(options: Mapping[str, object]) -> dict[str, object]:
    """Return the options as a dict.

    Raises:
        TypeError: If one is no argument of ConTNet, or has a parameter of its own.
    """
    wrong = [key for key in options if key not in OPTIONS]
    if wrong:
        raise TypeError(
            f'{wrong[0]!r} is no option of the backbone; there are {", ".join(OPTIONS)}'
        )
    return dict(options)


def find_root(config: Config) -> KeyPath:
    """Return the path of the dict that holds the backbone.

    Raises:
        SwapError: If the config has no model, none with a backbone, or one of another task.
    """
    model = config.get('model')
    if not isinstance(model, dict):
        raise SwapError('it has no model: is it the config of a data set or a schedule?')
    kind = kind_of(config)
    if kind not in TASKS:
        raise SwapError(f'it is for {kind}, which is none of {", ".join(TASKS)}')
    # A semi-supervised detector holds its detector as a part.
    root = ('model', 'detector') if isinstance(model.get('detector'), dict) else ('model',)
    holder = find_value(config, root)
    if not isinstance(holder.get('backbone'), dict):
        raise SwapError(f'{type_name(holder)} has no backbone in it')
    return root


def short_name(arch: str) -> str:
    """Return the name of an arch in files: ``ti``, ``s``, ``m`` or ``b``."""
    names = {full: alias.lower() for alias, full in ALIASES.items()}
    return names.get(arch, arch.lower())


def _default_checkpoint(swap: Swap, arch: str | dict) -> str | None:
    if isinstance(arch, dict):
        swap.add_warning('the old backbone started from weights; say which by checkpoint')
        return None
    checkpoint = f'checkpoints/contnet-{short_name(arch)}_in1k.pth'
    swap.add_warning(f'{checkpoint} is looked for where the training runs')
    return checkpoint


def _shared_head(backbone: dict) -> dict:
    """Return the config of a RoI head's stage that goes with a ConTNet."""
    kept = {key: backbone[key] for key in SHARED_OPTIONS if key in backbone}
    if 'init_cfg' in backbone:
        kept['init_cfg'] = backbone['init_cfg']
    else:
        kept.pop('norm_eval', None)
    return dict(type='contnet_mm.ConTLayer', arch=backbone['arch'], **kept)
