"""Run code of the libraries without a trace: no logs, no random numbers, one kind of error."""

from __future__ import annotations

import io
import logging
import random
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import numpy as np
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope

from contnet_mm.apis.config import LIBRARIES
from contnet_mm.swap.edit import SwapError
from contnet_mm.swap.task import register

NUM_CHARACTERS = 500  # of another library's message that an error repeats


class OddConfigError(SwapError):
    """A config that says something of a kind that is read nowhere, such as a number for a dict.

    Of a config that a library ships it is a fault of ours.
    """


class RunError(SwapError):
    """A part that does not run on an image of some size; on a larger one it might."""


class MissingDependencyError(SwapError):
    """A config that needs what is not here: a package, or a GPU; the message says what."""


@contextmanager
def sandbox(scope: str | None) -> Iterator[None]:
    """Keep the caller's random numbers, default scope, gradient mode and logs out of what runs.

    Args:
        scope: The default scope inside, None for the one outside.

    Raises:
        MissingDependencyError: If the library of the scope cannot be imported.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), silence():
            # Where the Runner puts its own.
            MMLogger.get_instance(__name__, log_level=logging.CRITICAL)
            hub = MessageHub.get_instance(__name__)
            for name in ('epoch', 'iter'):  # some heads change with these
                hub.update_info(name, 0)
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
        for kind in (MMLogger, MessageHub):
            kind._instance_dict.pop(__name__, None)  # MMEngine has no public way


@contextmanager
def silence() -> Iterator[None]:
    """Keep what the libraries log, print and warn of out of the output."""
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
    except (Exception, SystemExit) as error:  # a config is code: it may even exit
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
