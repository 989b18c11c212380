"""The disk that the checkpoints of a training take."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from contnet_mm.registry import MODELS
from contnet_mm.reproduce.state import compute_fingerprint

_SIZES: dict[str, tuple[int, int]] = {}  # of models that were built before


def count_bytes(config: Config) -> int:
    """Return the size of a checkpoint: of the state dict, and of the state of the optimizer."""
    key = compute_fingerprint(config.model.to_dict())
    if key not in _SIZES:
        _SIZES[key] = _measure(config)
    weights, trained = _SIZES[key]
    optimizer = config.optim_wrapper.optimizer
    # Adam and its kin keep two tensors for each that is trained.
    return weights + trained * (bool(optimizer.get('momentum')) if optimizer.type == 'SGD' else 2)


def _measure(config: Config) -> tuple[int, int]:
    """Return the bytes of a model's state dict, and of its tensors that are trained."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        try:
            with torch.device('meta'):
                model = MODELS.build(deepcopy(config.model))
        except RuntimeError:  # MMPretrain's ResNet reads values while it is built
            model = MODELS.build(deepcopy(config.model))
    tensors = {id(x): x for x in model.state_dict(keep_vars=True).values()}.values()
    return sum(x.nbytes for x in tensors), sum(x.nbytes for x in tensors if x.requires_grad)


def count_checkpoints(config: Config) -> int:
    """Return how many checkpoints lie on the disk at once, at most."""
    hook, train_cfg = config.default_hooks.checkpoint, config.train_cfg
    number = hook.get('max_keep_ckpts', -1) + 1  # and the one that is being written
    if not number:
        steps = train_cfg.get('max_iters') or train_cfg.max_epochs
        number = math.ceil(steps / hook.get('interval', 1))
    return number + bool(hook.get('save_best'))
