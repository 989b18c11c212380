"""Writing checkpoint files: plain contents, equal bytes for equal contents."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from contnet_mm.utils.errors import show_all

SUFFIXES = ('.pth', '.pt', '.safetensors')
# Beside the meta in .safetensors: what torch keeps per module as an attribute of the state dict.
MODULES = 'state_dict_metadata'


def encode_checkpoint(
    state_dict: Mapping[str, Tensor], meta: Mapping | None = None, suffix: str = '.pth'
) -> bytes:
    """Return the bytes of a checkpoint file; one version of torch repeats them.

    Args:
        state_dict: Tensors by name. Its ``_metadata``, where there is one, is kept.
        meta: Plain values to keep beside them, as MMEngine does; None keeps the state dict alone.
        suffix: One of ``SUFFIXES``: the kind of file.

    Raises:
        ModuleNotFoundError: If safetensors is asked for and not installed.
        ValueError: If the suffix is none of these, or a value is no tensor.
    """
    check_suffix(f'*{suffix}')
    wrong = [key for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f'the values of {show_all(wrong)} are no tensors: they cannot be saved')
    # A copy leaves out memory that is shared with other tensors.
    tensors = OrderedDict(
        (key, value.detach().clone(memory_format=torch.contiguous_format))
        for key, value in state_dict.items()
    )
    # Versions of the modules, which some modules look at, and the options of ConTNet.
    metadata = getattr(state_dict, '_metadata', None)
    if suffix == '.safetensors':
        extra = {} if metadata is None else {MODULES: metadata}
        # One entry, since several are written in an order that changes from run to run.
        text = json.dumps({**(meta or {}), **extra}, sort_keys=True)
        return import_safetensors().torch.save(tensors, {'meta': text})
    if metadata is not None:
        tensors._metadata = metadata
    stream = io.BytesIO()  # written to a file, the archive would hold the file's name
    torch.save(tensors if meta is None else dict(meta=dict(meta), state_dict=tensors), stream)
    return stream.getvalue()


def check_suffix(path: str | Path) -> str:
    """Return the suffix of a checkpoint's name.

    Raises:
        ValueError: If it is none of ``SUFFIXES``.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f'{path} must end in one of {", ".join(SUFFIXES)}')
    return suffix


def import_safetensors():
    """Import the library that only ``.safetensors`` files need.

    Raises:
        ModuleNotFoundError: If it is not installed; the message says how to install it.
    """
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'files that end in .safetensors need the library safetensors: pip install safetensors'
        ) from error
    return safetensors
