"""Batch, learning rate, length and hooks of a training, for a number of images."""

from __future__ import annotations

import math
from pathlib import Path

from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.swap.edit import Swap
from contnet_mm.swap.task import kind_of, type_name

# Where batch norm learns from nothing, it needs that many images for its statistics.
LEAST_BATCH = 8
# An epoch of fewer steps learns from batches that hold most of the data.
LEAST_STEPS = 10
# Iterations that a training gets at least: fine-tuning, and from scratch.
LEAST_ITERATIONS = {False: 2000, True: 4000}
MOST_EPOCHS = 300
PASSES = 100  # over the images, where the base counts iterations
NUM_VALIDATIONS = 20
PATIENCE = 10
# What is the best, and what is an improvement of it: AP counts to 1, the others to 100.
METRICS = {
    'detection': ('coco/bbox_mAP', 0.001),
    'instance segmentation': ('coco/segm_mAP', 0.001),
    'semantic segmentation': ('mIoU', 0.1),
    'classification': ('accuracy/top1', 0.1),
}
SCALED = ('begin', 'end', 'T_max', 'step_size', 'total_steps')
HEADS = ('neck.', 'rpn_head.', 'roi_head.', 'bbox_head.', 'mask_head.', 'decode_head.')


def set_weights(swap: Swap, weights: Path | None) -> None:
    """Let a config start from a file, or from scratch with nothing frozen.

    Args:
        swap: The config.
        weights: Of a backbone, a classifier, or a whole detector or segmentor.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or would have to run code to be read.
    """
    backbone = ('model', 'backbone')
    if swap.get(('model', 'pretrained')):
        swap.set(('model', 'pretrained'), None, 'Weights are stated with the backbone.')
    if weights is not None:
        content = read_checkpoint(weights)
        state = content.get('state_dict', content) if isinstance(content, dict) else {}
        init = dict(type='Pretrained', checkpoint=str(weights))
        if type_name(swap.get(backbone)) != 'ConTNet' and _has(state, 'backbone.'):
            init['prefix'] = 'backbone.'  # which ConTNet finds out by itself
        swap.set((*backbone, 'init_cfg'), init, 'Weights to start from.')
        if _has(state, HEADS):
            swap.set(('load_from',), str(weights), 'Neck and heads, as far as their shapes agree.')
        return
    why = 'From scratch.'
    if swap.get((*backbone, 'init_cfg')):
        swap.set((*backbone, 'init_cfg'), None, why)
    if swap.config.get('load_from'):
        swap.set(('load_from',), None, why)
    for key, value in (('frozen_stages', -1), ('norm_eval', False)):
        if swap.get((*backbone, key)) is not None:
            swap.set((*backbone, key), value, f'{why} Nothing is frozen.')


def _has(state: dict, prefix: str | tuple[str, ...]) -> bool:
    return any(str(key).startswith(prefix) for key in state)


def set_recipe(
    swap: Swap, num_images: int, from_scratch: bool, batch_size: int | None, epochs: int | None
) -> None:
    """Set batch, learning rate, length, validation, early stopping and best checkpoint.

    Args:
        swap: The config.
        num_images: In the training part.
        from_scratch: Whether no weights are loaded.
        batch_size: Images per step on one device; None: by the rules below.
        epochs: Passes over the images; None: by the rules below.
    """
    batch = batch_size or _choose_batch(swap, num_images, from_scratch)
    why = f'Images per step, for {num_images} images on one device.'
    swap.set(('train_dataloader', 'batch_size'), batch, why)
    ratio = _set_rate(swap, batch)
    steps = math.ceil(num_images / batch)
    is_iterations = 'max_iters' in swap.config.train_cfg
    old = swap.config.train_cfg['max_iters' if is_iterations else 'max_epochs']
    least = LEAST_ITERATIONS[from_scratch]
    if is_iterations:
        length = epochs * steps if epochs else min(max(least, PASSES * steps), max(old, least))
        why = f'Iterations; {steps} are one pass over {num_images} images.'
        swap.set(('train_cfg', 'max_iters'), length, why)
    else:
        length = epochs or max(old, min(MOST_EPOCHS, math.ceil(least / steps)))
        why = f'Epochs of {steps} iterations.'
        swap.set(('train_cfg', 'max_epochs'), length, why)
    interval = max(1, length // NUM_VALIDATIONS)
    swap.set(('train_cfg', 'val_interval'), interval, f'About {NUM_VALIDATIONS} validations.')
    _scale_schedule(swap, length / old, length * (1 if is_iterations else steps), ratio)
    _set_hooks(swap, interval, steps)


def _choose_batch(swap: Swap, num_images: int, from_scratch: bool) -> int:
    batch = swap.config.train_dataloader.batch_size
    batch = max(batch, LEAST_BATCH) if from_scratch else batch
    # Batch norm after pooling to one pixel fails on a single image.
    return max(2, min(batch, num_images // LEAST_STEPS))


def _set_rate(swap: Swap, batch: int) -> float:
    """Scale the learning rate linearly with the batch; return the ratio."""
    base = swap.get(('auto_scale_lr', 'base_batch_size')) or swap.config.train_dataloader.batch_size
    rate = swap.get(('optim_wrapper', 'optimizer', 'lr'))
    why = f'Linear scaling: {rate:g} was for a batch of {base}, so {rate:g} * {batch} / {base}.'
    swap.set(('optim_wrapper', 'optimizer', 'lr'), float(f'{rate * batch / base:.4g}'), why)
    why = 'The learning rate is for this batch; --auto-scale-lr goes on from here.'
    if swap.config.get('auto_scale_lr') is None:
        swap.set(('auto_scale_lr',), dict(enable=False, base_batch_size=batch), why)
    else:
        swap.set(('auto_scale_lr', 'base_batch_size'), batch, why)
    return batch / base


def _scale_schedule(swap: Swap, factor: float, iterations: int, ratio: float) -> None:
    """Stretch the schedule to another length; a warm-up in iterations is a tenth of it at most."""
    given = swap.config.get('param_scheduler')
    if given is None:
        return
    schedulers = given if isinstance(given, list | tuple) else [given]
    is_epochs = 'max_iters' not in swap.config.train_cfg
    new = []
    for old in schedulers:
        one = dict(old.items())
        if is_epochs and not one.get('by_epoch', True):
            one['end'] = min(one.get('end', iterations), max(1, iterations // 10))
        else:
            for key in SCALED:
                if isinstance(one.get(key), int):
                    one[key] = round(one[key] * factor)
            if 'milestones' in one:
                one['milestones'] = [round(value * factor) for value in one['milestones']]
        if one.get('eta_min'):
            one['eta_min'] = float(f'{one["eta_min"] * ratio:.4g}')
        new.append(one)
    why = 'Stretched with the training.'
    swap.set(('param_scheduler',), new if isinstance(given, list | tuple) else new[0], why)


def _set_hooks(swap: Swap, interval: int, steps: int) -> None:
    metric, least = METRICS[kind_of(swap.config)]
    checkpoint = ('default_hooks', 'checkpoint')
    why = 'Beside the last checkpoint the best one is kept.'
    settings = dict(interval=interval, save_best=metric, rule='greater', max_keep_ckpts=1)
    for key, value in settings.items():
        swap.set((*checkpoint, key), value, why)
    log = ('default_hooks', 'logger', 'interval')
    every = max(1, min(swap.get(log, 50), steps // 2))
    swap.set(log, every, 'Iterations; at least two lines per epoch.')
    stopping = dict(
        type='EarlyStoppingHook', monitor=metric, rule='greater', min_delta=least, patience=PATIENCE
    )
    others = [*(swap.config.get('custom_hooks') or [])]
    why = f'Stops after {PATIENCE} validations, half the training, that bring less than {least:g}.'
    swap.set(('custom_hooks',), [*others, stopping], why)
