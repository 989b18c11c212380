"""Whether the model of a config fits together: it is built, learns for a step, and predicts."""

from __future__ import annotations

import copy
import io
import logging
import random
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import nn

from contnet_mm.apis.config import LIBRARIES
from contnet_mm.swap.changes import RunError, SwapError
from contnet_mm.swap.task import TASKS, kind_of, library_of, register, task_of, type_name
from contnet_mm.swap.trial.samples import make_batch, tensors_in
from contnet_mm.swap.trial.shrink import make_small

# Times the smallest images, for what does not run on those: LRASPP's pooling needs 400 pixels.
LARGER = {'mmdet': 3, 'mmseg': 7, 'mmpretrain': 3}
NO_PREDICTION = 'but no prediction, nor with the old backbone'
NUM_CHARACTERS = 500  # of another library's message that an error repeats


class MissingDependencyError(SwapError):
    """A config that needs what is not here: a package, or a GPU; the message says what."""


class AlikeError(SwapError):
    """A config that fails with its old backbone as well."""


class PredictError(RunError):
    """A model that trained for a step and does not predict.

    Args:
        message: What went wrong.
        done: What went right.
        missing: Whether something is not here that any prediction of the model needs.
    """

    def __init__(self, message: str, done: str, missing: bool) -> None:
        super().__init__(message)
        self.done, self.missing = done, missing


def verify_swap(original: Config, swapped: Config) -> str:
    """Verify a swapped config; where it fails, find out whether the one before does so too.

    Args:
        original: The config before.
        swapped: The same with ConTNet in it.

    Returns:
        As :func:`verify`; or, for a model that trains, that its prediction fails with either.

    Raises:
        AlikeError: If the original fails with the same message.
        SwapError: As :func:`verify`.
    """
    try:
        return verify(swapped)
    except MissingDependencyError:
        raise
    except SwapError as error:
        failure = error
    alike = getattr(failure, 'missing', False) or str(failure) == _failure_of(original)
    if not alike:
        raise failure
    if isinstance(failure, PredictError):
        return f'{failure.done}, {NO_PREDICTION}: {failure}'
    raise AlikeError(f'{failure}. With the old backbone it fails alike') from failure


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
    :func:`contnet_mm.swap.trial.shrink.make_small`.

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
        if task_of(config) is None:
            raise SwapError(
                f'no samples are known for {kind_of(config)}; known: {", ".join(TASKS)}'
            )
        with failing('making the model small'):
            small = make_small(config)
        model = build(small)
        optimizer = build_optimizer(model, small)
        loss, (height, width) = run(small, model, optimizer)
    return f'{_step(loss)} and one prediction at {height}x{width}'


def run(
    config: Config, model: nn.Module, optimizer: OptimWrapper | None = None
) -> tuple[float, tuple[int, int]]:
    """Train a model for one step and predict, on the smallest images that it takes.

    Args:
        config: What :func:`contnet_mm.swap.trial.shrink.make_small` returned.
        model: What :func:`build` made of it.
        optimizer: Takes the step, if given.

    Returns:
        The loss, and height and width of the first image.

    Raises:
        SwapError: If that fails at every size.
    """
    try:
        return _run_once(config, model, optimizer, 1)
    except RunError:
        return _run_once(config, model, optimizer, LARGER[library_of(config)])


def _run_once(
    config: Config, model: nn.Module, optimizer: OptimWrapper | None, scale: int
) -> tuple[float, tuple[int, int]]:
    with failing('making random samples'):
        batch = make_batch(config, model, scale)
    loss = train_step(model, batch, optimizer)
    if library_of(config) == 'mmdet':  # detectors are tested by the image, and some take no more
        batch = {key: values[:1] for key, values in batch.items()}
    try:
        predict(model, batch)
    except SwapError as error:
        missing = isinstance(error, MissingDependencyError)
        raise PredictError(str(error), _step(loss), missing) from error
    return loss, tuple(batch['inputs'][0].shape[1:])


def _step(loss: float) -> str:
    return f'one training step (loss {loss:.4g})'


@contextmanager
def sandbox(scope: str | None) -> Iterator[None]:
    """Keep the caller's random numbers, default scope, gradient mode and logs out of what runs.

    Args:
        scope: The default scope inside, None for the one outside.

    Raises:
        MissingDependencyError: If the library of the scope cannot be imported.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), _own_instances(), _silence():
        try:
            torch.default_generator.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
            with failing(f'importing {scope}'):
                register(scope)
            with DefaultScope.overwrite_default_scope(scope):
                yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


@contextmanager
def _own_instances() -> Iterator[None]:
    """Put a silent logger and a message hub of ours where the Runner puts its own."""
    MMLogger.get_instance(__name__, log_level=logging.CRITICAL)
    hub = MessageHub.get_instance(__name__)
    for name in ('epoch', 'iter'):  # some heads change with these
        hub.update_info(name, 0)
    try:
        yield
    finally:
        for kind in (MMLogger, MessageHub):
            kind._instance_dict.pop(__name__, None)  # MMEngine has no public way


@contextmanager
def _silence() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)


@contextmanager
def failing(step: str, kind: type[SwapError] = SwapError) -> Iterator[None]:
    """Turn what another library raises into a SwapError that names the step.

    Args:
        step: What is going on.
        kind: The class to raise.

    Raises:
        MissingDependencyError: For what is not installed.
        SwapError: For everything else.
    """
    try:
        yield
    except SwapError:
        raise
    except Exception as error:
        text = ' '.join(str(error).split())[:NUM_CHARACTERS].rstrip('. ')
        message = f'{step}: {type(error).__name__}: {text}'
        missing = _missing(error)
        if missing:
            raise MissingDependencyError(f'{message}. {missing}') from error
        raise kind(message) from error


def _missing(error: Exception) -> str | None:
    """Say how to get what is missing, if that is what an error is about."""
    text = str(error)
    module = re.search(r"No module named '(\w+)", text)
    if module and module[1] in LIBRARIES:
        return '`python -m contnet_mm doctor` names the command that installs it'
    if module:
        return f'Try `pip install {module[1]}`'
    if isinstance(error, ImportError) or re.search(r'(?i)not installed|please install', text):
        return 'It has to be installed first'
    if 'implementation for device cpu' in text:
        return "This operation of mmcv's exists for GPUs alone, so a CPU cannot tell"
    return None


def build(config: Config) -> nn.Module:
    """Build the model of a config as the Runner does on one device, with weights of its own.

    Args:
        config: What :func:`contnet_mm.swap.trial.shrink.make_small` returned.

    Raises:
        SwapError: If it cannot be built.
    """
    with failing('building the model'):
        model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(config.model)))
    with failing('initialising the weights'):
        model.init_weights()
    return model


def build_optimizer(model: nn.Module, config: Config) -> OptimWrapper | None:
    """Build the optimizer of a config; None if it has none.

    Raises:
        SwapError: If it cannot be built.
    """
    if not config.get('optim_wrapper'):
        return None
    with failing(f'building the optimizer {type_name(config.optim_wrapper.get("optimizer"))}'):
        return build_optim_wrapper(model, config.optim_wrapper)


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
        _check_prediction(sample)
    return samples


def _check_prediction(sample: BaseDataElement) -> None:
    predictions = {key: value for key, value in sample.items() if key.startswith(('pred', 'seg'))}
    if not predictions:
        raise SwapError('predicting: no prediction comes out')
    for key, value in predictions.items():
        if key == 'pred_instances':  # PAA's boxes are 0 / 0 where an untrained head's have no size
            value = value.get('scores')
        if not all(tensor.isfinite().all() for tensor in tensors_in(value)):
            raise SwapError(f'predicting: {key} is not finite')
