"""The swap of a backbone for ConTNet, from config to config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from mmengine.config import Config

from contnet_mm.models.arch import ALIASES, resolve_arch
from contnet_mm.models.contnet import ConTNet
from contnet_mm.swap import consumers, training
from contnet_mm.swap.backbone import carry_settings, place_maps, short_name
from contnet_mm.swap.changes import RunError, Swap, SwapError
from contnet_mm.swap.edit import Editor, Path
from contnet_mm.swap.features import SIZES, build, measure, run
from contnet_mm.swap.pixels import mend_pixels
from contnet_mm.swap.task import TASKS, kind_of, library_of, type_name
from contnet_mm.swap.trial.verify import sandbox

TYPE = 'contnet_mm.ConTNet'
# What decides the maps besides `arch`; a shared head has to be built alike.
SHARED_OPTIONS = ('position', 'pre_norm', 'qkv_bias', 'norm_cfg', 'norm_eval', 'with_cp')
NOT_OPTIONS = ('self', 'arch', 'init_cfg')
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
        **options: Further arguments of ConTNet, which stand over what is carried over.

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
    """As :func:`swap_backbone`, and tell what changed, why, and what a person has to judge."""
    options = check_options(options or {})
    resolve_arch(arch)
    arch = ALIASES.get(arch, arch) if isinstance(arch, str) else arch
    root = find_backbone(config)
    for size in _sizes(config, root):
        editor = Editor(config)
        try:
            with sandbox(library_of(config)), torch.no_grad():
                _swap(editor, root, size, dict(type=TYPE, arch=arch), checkpoint, options)
            return editor.finish()
        except RunError as error:
            reason = error
    raise reason


def _swap(
    editor: Editor,
    root: Path,
    size: int,
    new_cfg: dict,
    checkpoint: str | None,
    options: Mapping[str, object],
) -> None:
    scope = library_of(editor.config)
    old_cfg = editor.get((*root, 'backbone'))
    if type_name(old_cfg) == 'ConTNet':
        raise SwapError('its backbone is ConTNet already')
    consumers.check_method(editor.get(root))
    old = build(old_cfg)
    maps = run(old, torch.randn(2, _in_channels(old_cfg), size, size))
    from_weights = training.starts_from_weights(editor, root)
    carried, unknown = carry_settings(old, old_cfg, from_weights)
    editor.judge(*unknown)
    pooled = scope == 'mmpretrain' and _pools(editor.get((*root, 'neck')))
    placed, unknown = place_maps(old, measure(maps, size), options, pooled)
    editor.judge(*unknown)
    new_cfg = {**new_cfg, **placed, **carried, **options}
    new = build(new_cfg)
    stream = consumers.Stream(maps, run(new, torch.randn(2, new.in_channels, size, size)), size)
    weights = _weights(editor, new_cfg['arch'], checkpoint, from_weights)
    if weights:
        new_cfg['init_cfg'] = weights

    editor.set((*root, 'backbone'), new_cfg, f'ConTNet in place of {type_name(old_cfg)}.')
    if scope == 'mmpretrain':
        consumers.mend_classifier(editor, root, stream, old_cfg)
    else:
        stream.check_strides()
        stream = consumers.mend_necks(editor, root, stream)
        stream.check_strides()
        if scope == 'mmseg':
            consumers.mend_segmentor(editor, root, stream)
        else:
            consumers.mend_detector(editor, root, stream, _shared_head(new_cfg))
    training.take_out_weights(editor, root)
    training.add_import(editor)
    training.mend_optimizer(editor, old, new)
    mend_pixels(editor)


def check_options(options: Mapping[str, object]) -> dict[str, object]:
    """Return the options as a dict.

    Raises:
        TypeError: If one is no argument of ConTNet, or has a place of its own.
    """
    wrong = [key for key in options if key not in OPTIONS]
    if wrong:
        raise TypeError(
            f'{wrong[0]!r} is no option of the backbone; there are {", ".join(OPTIONS)}'
        )
    return dict(options)


def find_backbone(config: Config) -> Path:
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
    holder = config.model.detector if len(root) > 1 else model
    if not isinstance(holder.get('backbone'), dict):
        raise SwapError(f'{type_name(holder)} has no backbone in it')
    return root


def _sizes(config: Config, root: Path) -> list[int]:
    """Return the sides of images to try, that of a network for one size last."""
    holder = config.model.detector if len(root) > 1 else config.model
    own = holder.backbone.get('img_size', SIZES[0])
    own = max(own) if isinstance(own, (list, tuple)) else own
    return [*dict.fromkeys((*SIZES, own))]


def _in_channels(cfg: dict) -> int:
    channels = cfg.get('in_channels', 3)
    return channels if isinstance(channels, int) else 3


def _pools(neck: dict | list | None) -> bool:
    """Tell whether a classifier averages the last map at once."""
    first = neck[0] if isinstance(neck, (list, tuple)) else neck
    return first is None or 'Pooling' in type_name(first)


def _weights(
    editor: Editor, arch: str | dict, checkpoint: str | None, from_weights: bool
) -> dict | None:
    """Return the ``init_cfg`` of ConTNet, if it starts from weights."""
    if checkpoint is None and from_weights:
        if isinstance(arch, dict):
            editor.judge('the old backbone started from weights; say which by checkpoint')
            return None
        checkpoint = f'checkpoints/contnet-{short_name(arch)}_in1k.pth'
        editor.judge(f'{checkpoint} is looked for where the training runs')
    if checkpoint is None:
        return None
    return dict(type='Pretrained', checkpoint=str(checkpoint))


def _shared_head(backbone: dict) -> dict:
    """Return the config of a RoI head's stage that goes with a ConTNet."""
    kept = {key: backbone[key] for key in SHARED_OPTIONS if key in backbone}
    # Its first norm has to learn: it sees other values than in the whole network.
    norm_cfg = {k: v for k, v in kept.pop('norm_cfg', {}).items() if k != 'requires_grad'}
    if norm_cfg not in ({}, dict(type='BN')):
        kept['norm_cfg'] = norm_cfg
    if 'init_cfg' in backbone:
        kept['init_cfg'] = backbone['init_cfg']
    else:
        kept.pop('norm_eval', None)
    return dict(type='contnet_mm.ConTLayer', arch=backbone['arch'], **kept)
