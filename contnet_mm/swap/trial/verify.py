"""Whether the model of a config fits together: it is built, learns for a step, and predicts."""

from __future__ import annotations

import copy

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn

from contnet_mm.swap.edit import SwapError
from contnet_mm.swap.sandbox import MissingDependencyError, RunError, failing, sandbox
from contnet_mm.swap.task import TASKS, kind_of, library_of, type_name
from contnet_mm.swap.trial.samples import make_batch
from contnet_mm.swap.trial.shrink import make_small

# Times the smallest images, for what does not run on those: LRASPP's pooling needs 400 pixels.
LARGER = {'mmdet': 3, 'mmseg': 7, 'mmpretrain': 3}
NO_PREDICTION = 'but no prediction, nor with the old backbone'


class OriginalFailsTooError(SwapError):
    """A config that fails with its old backbone as well."""


class PredictError(RunError):
    """A model that trained for a step, as ``done`` tells, and does not predict.

    ``missing`` tells whether something is not here that any prediction of the model needs.
    """

    def __init__(self, message: str, done: str, missing: bool) -> None:
        super().__init__(message)
        self.done, self.missing = done, missing


def verify_swap(original: Config, swapped: Config) -> str:
    """Verify a swapped config; where it fails, find out whether the original does so too.

    Returns:
        As :func:`verify`; or, for a model that trains, that its prediction fails with either.

    Raises:
        OriginalFailsTooError: If the original fails with the same message.
        SwapError: As :func:`verify`.
    """
    try:
        return verify(swapped)
    except MissingDependencyError:
        raise
    except SwapError as failure:
        if not getattr(failure, 'missing', False) and _failure_of(original) != str(failure):
            raise
        if isinstance(failure, PredictError):
            return f'{failure.done}, {NO_PREDICTION}: {failure}'
        raise OriginalFailsTooError(f'{failure}. With the old backbone it fails alike') from failure


def _failure_of(config: Config) -> str | None:
    try:
        verify(config)
    except SwapError as error:
        return str(error)
    return None


def verify(config: Config) -> str:
    """Build the model of a config, train it for one step and predict, all on small random images.

    Nothing is downloaded, written or logged, and the config, random numbers, default scope and
    logger stay as they were. What is left out or made small is in
    :func:`contnet_mm.swap.trial.shrink.make_small`. What fails on the smallest images is tried on
    larger ones.

    Args:
        config: Of detection, instance, panoptic or semantic segmentation, or classification.

    Returns:
        A line for people: what was done.

    Raises:
        MissingDependencyError: If something is not installed that the model needs.
        PredictError: If the prediction fails, or is not finite.
        SwapError: If the step fails, the loss is not finite, or a parameter of the backbone gets
            no gradient.
    """
    with sandbox(library_of(config)):
        if kind_of(config) not in TASKS:
            raise SwapError(
                f'no samples are known for {kind_of(config)}; known: {", ".join(TASKS)}'
            )
        with failing('making the model small'):
            small = make_small(config)
        model = build(small)
        optimizer, wrapper = None, small.get('optim_wrapper')
        if wrapper:
            with failing(f'building the optimizer {type_name(wrapper.get("optimizer"))}'):
                optimizer = build_optim_wrapper(model, wrapper)
        try:
            return _train_and_predict(small, model, optimizer, scale=1)
        except RunError:
            return _train_and_predict(small, model, optimizer, LARGER[library_of(small)])


def _train_and_predict(
    config: Config, model: nn.Module, optimizer: OptimWrapper | None, scale: int
) -> str:
    with failing('making random samples'):
        batch = make_batch(config, model, scale)
    done = f'one training step (loss {train_step(model, batch, optimizer):.4g})'
    if library_of(config) == 'mmdet':  # detectors are tested by the image, and some take no more
        batch = {key: values[:1] for key, values in batch.items()}
    try:
        predict(model, batch)
    except SwapError as error:
        missing = isinstance(error, MissingDependencyError)
        raise PredictError(str(error), done, missing) from error
    _, height, width = batch['inputs'][0].shape
    return f'{done} and one prediction at {height}x{width}'


def build(config: Config) -> nn.Module:
    """Build the model of a small config as the Runner does on one device, with its own weights.

    Raises:
        SwapError: If it cannot be built.
    """
    with failing('building the model'):
        model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(config.model)))
    with failing('initialising the weights'):
        model.init_weights()
    return model


def train_step(model: nn.Module, batch: dict, optimizer: OptimWrapper | None = None) -> float:
    """Train a model for one step on a batch, and return the loss.

    Raises:
        SwapError: If that fails, the loss is not finite, or the backbone does not learn as a whole.
    """
    model.train()
    model.zero_grad()
    with failing('computing the loss', RunError):
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        losses = model(**data, mode='loss')
        total, values = model.parse_losses(losses)
    if not torch.isfinite(total):
        wrong = [name for name, value in values.items() if not np.isfinite(float(value))]
        raise SwapError(f'computing the loss: {", ".join(wrong)} is not finite')
    with failing('computing gradients'):
        total.backward()
    check_gradients(model)
    if optimizer is not None:
        with failing('taking a step of the optimizer'):
            optimizer.step()
    return total.item()


def check_gradients(model: nn.Module) -> None:
    """Check that every parameter of the backbone that is to learn has a finite gradient.

    Raises:
        SwapError: If one has none, which is also what stops training on several GPUs.
    """
    for name, parameter in model.backbone.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            raise SwapError(
                f'computing gradients: backbone.{name} gets none; does a head read every map in '
                'out_indices?'
            )
        if parameter.requires_grad and not parameter.grad.isfinite().all():
            raise SwapError(f'computing gradients: that of backbone.{name} is not finite')


def predict(model: nn.Module, batch: dict) -> list:
    """Predict on a batch, and return the data samples with predictions.

    Raises:
        SwapError: If that fails, or a prediction is missing or not finite.
    """
    model.eval()
    with failing('predicting', RunError), torch.no_grad():
        data = model.data_preprocessor(copy.deepcopy(batch), False)
        samples = model(**data, mode='predict')
    for sample in samples:
        predictions = {k: v for k, v in sample.items() if k.startswith(('pred', 'seg'))}
        if not predictions:
            raise SwapError('predicting: no prediction comes out')
        for key, value in predictions.items():
            if key == 'pred_instances':  # PAA's boxes are 0 / 0 where an untrained head's are empty
                value = value.get('scores')
            parts = value.values() if isinstance(value, BaseDataElement) else [value]
            if not all(part.isfinite().all() for part in parts if isinstance(part, torch.Tensor)):
                raise SwapError(f'predicting: {key} is not finite')
    return samples
