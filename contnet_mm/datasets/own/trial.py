"""One training step, one prediction and one evaluation on real samples of a config's data."""

from __future__ import annotations

import copy

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS
from torch import nn

from contnet_mm.datasets.check.heads import CLASSLESS
from contnet_mm.swap.edit import SwapError
from contnet_mm.swap.sandbox import failing, sandbox
from contnet_mm.swap.task import library_of
from contnet_mm.swap.trial.shrink import make_small
from contnet_mm.swap.trial.verify import build, predict, train_step

NUM_SAMPLES = 2


def try_config(config: Config, num_classes: int) -> str:
    """Build data sets and model of a config, train it for a step, predict and evaluate.

    As :func:`contnet_mm.swap.trial.verify.verify`, but with the first images of the training part
    and the first one to validate on, through the pipelines of the config.

    Args:
        config: With the data sets in place.
        num_classes: Of the data.

    Returns:
        A line for people: what was done.

    Raises:
        SwapError: If any of it fails, or a part of the model counts other classes.
    """
    with sandbox(library_of(config)):
        with failing('making the model small'):
            small = make_small(config)
        model = build(small)
        check_heads(model, num_classes)
        with failing('building the optimizer'):
            optimizer = build_optim_wrapper(model, small.optim_wrapper)
        with failing('reading training images'):
            _, batch = _read(config, 'train', NUM_SAMPLES)
        shape = 'x'.join(map(str, batch['inputs'][0].shape[1:]))
        loss = train_step(model, batch, optimizer)
        with failing('reading an image to validate on'):
            dataset, batch = _read(config, 'val', 1)
        samples = predict(model, batch)
        with failing('evaluating a prediction'):
            evaluator = Evaluator(copy.deepcopy(config.val_evaluator))
            evaluator.dataset_meta = dataset.metainfo
            evaluator.process(samples, batch)
            evaluator.evaluate(len(samples))
    return (
        f'one training step on real images (the first {shape} pixels, loss {loss:.4g}), one '
        'prediction and its evaluation'
    )


def check_heads(model: nn.Module, num_classes: int) -> None:
    """Raise SwapError for a part of a model that counts other classes: by a default, for instance.

    Args:
        model: A detector, segmentor or classifier.
        num_classes: Of the data.
    """
    for name, module in model.named_modules():
        count = getattr(module, 'num_classes', None)
        if any(one in CLASSLESS for one in name.split('.')) or not isinstance(count, int):
            continue
        if count != num_classes:
            raise SwapError(
                f'model.{name} ({type(module).__name__}) has num_classes={count}, the data '
                f'{num_classes}; state it in the base'
            )


def _read(config: Config, role: str, number: int) -> tuple[object, dict]:
    """Return a data set and a batch of its first samples."""
    dataset = DATASETS.build(copy.deepcopy(config[f'{role}_dataloader']['dataset']))
    samples = [dataset[index] for index in range(min(number, len(dataset)))]
    if not samples:
        raise ValueError(f'the part for {role} is empty once images without objects are left out')
    return dataset, {key: [sample[key] for sample in samples] for key in samples[0]}
