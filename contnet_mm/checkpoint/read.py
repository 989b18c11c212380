"""Reading checkpoint files without running code that is in them."""

from __future__ import annotations

import codecs
import json
import os
import pickle
import re
import tarfile
from collections import OrderedDict
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch._weights_only_unpickler
from mmengine.fileio import get_local_path
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

from contnet_mm.checkpoint.archive import MAGIC, check_archive
from contnet_mm.checkpoint.depth import check_depth
from contnet_mm.checkpoint.inspection import STATISTICS, inspect_legacy, inspect_zip
from contnet_mm.checkpoint.write import MODULES, import_safetensors
from contnet_mm.utils.errors import first_line


def _numpy_globals() -> dict[str, object]:
    """Return what pickled numpy arrays and scalars name, under the names of numpy 1 and 2."""
    try:
        from numpy._core import multiarray
    except ImportError:  # numpy 1
        from numpy.core import multiarray
    names: dict[str, object] = {'numpy.ndarray': np.ndarray, 'numpy.dtype': np.dtype}
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        names[f'{module}._reconstruct'] = multiarray._reconstruct
        names[f'{module}.scalar'] = multiarray.scalar
    for kind in '?bBhHiIlLefdU':
        dtype = type(np.dtype(kind))
        names[f'{dtype.__module__}.{dtype.__name__}'] = dtype
    return names


def _statistic(owner: object, name: str) -> object:
    """Replace ``getattr``, by which a pickled log history names its own statistics."""
    if owner is HistoryBuffer and name in STATISTICS:
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'asks for getattr of {owner!r}, {name!r}')


# MMEngine's Runner saves its log history beside the weights.
EXTRA_GLOBALS: dict[str, object] = {
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'builtins.getattr': _statistic,
    '_codecs.encode': codecs.encode,
    'builtins.set': set,
    'builtins.complex': complex,
    'builtins.bytearray': bytearray,
    'torch.device': torch.device,
    **_numpy_globals(),
}

# Before it torch's own `weights_only` believed what a file says of the size of a storage, and let
# it write into tensors (CVE-2026-24747); before 2.6 it could run code (CVE-2025-32434).
SOUND_TORCH = '2.10'

LONGEST_REASON = 300  # characters of an error, which may hold names out of a file


def read_checkpoint(path: str | Path) -> object:
    """Read a checkpoint file onto the CPU without running code that is in it.

    Allowed are tensors, numbers, text, their containers and ``EXTRA_GLOBALS``.

    Args:
        path: A file, or whatever address MMEngine's file clients take. A name that ends in
            ``.safetensors`` is read as such.

    Returns:
        What was saved; for ``.safetensors`` a dict of ``state_dict`` and ``meta``.

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If the file needs the library safetensors and it is not installed.
        ValueError: If it is damaged, no checkpoint at all, or holds something that is not allowed.
    """
    with ExitStack() as stack:
        try:
            file = Path(stack.enter_context(get_local_path(os.path.expanduser(path))))
        except Exception as error:  # every file client has errors of its own
            raise ValueError(f'{path} cannot be fetched: {_reason(error)}; give a file') from error
        if not file.exists():
            raise FileNotFoundError(f'checkpoint {path} does not exist')
        if not file.is_file():
            raise ValueError(f'{path} is a folder, not a checkpoint file')
        return _read(file, path)


def _read(file: Path, path: str | Path) -> object:
    in_safetensors = Path(path).suffix == '.safetensors'
    if in_safetensors:
        import_safetensors()  # to name a missing library
    else:
        _refuse_other_formats(file, path)
    try:
        if in_safetensors:
            return _load_safetensors(file)
        _inspect(file)
        return _load(file)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f'{path} is refused, or is no checkpoint: {_reason(error)}. Beside tensors and '
            f'plain Python values only these are read: {", ".join(sorted(EXTRA_GLOBALS))}; '
            'save the state dict alone'
        ) from error
    except Exception as error:  # damage can make an unpickler fail in any way
        raise ValueError(
            f'{path} ({file.stat().st_size} bytes) is damaged or cut short, or is no '
            f'checkpoint: {_reason(error)}; fetch it again'
        ) from error


def _refuse_other_formats(file: Path, path: str | Path) -> None:
    with file.open('rb') as stream:
        head = stream.read(512)
    if head.lstrip()[:1] == b'<':
        raise ValueError(
            f'{path} is a web page, not a checkpoint (it starts with {head[:20]!r}): '
            'the download went wrong, fetch the file itself'
        )
    # torch before 2.6 hands tar archives and programs to loaders that run what is in them. Looking
    # at the first head alone asks for no memory, as Python's own reader of tar archives may.
    with suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, 'surrogateescape')
        raise ValueError(f'{path} is refused: it is a tar archive; save it with a newer torch')
    # By this name, found by this reader, torch knows a program.
    names: list[str] = []
    with suppress(Exception):  # no archive for torch
        names = torch._C.PyTorchFileReader(str(file)).get_all_records()
    if 'constants.pkl' in names:
        raise ValueError(f'{path} is refused: it is a TorchScript program; save weights')


def _inspect(file: Path) -> None:
    """Look through a file that torch is to read; see :mod:`contnet_mm.checkpoint.inspection`."""
    with file.open('rb') as stream:
        is_archive = stream.read(len(MAGIC)) == MAGIC
    if is_archive:
        inspect_zip(file, check_archive(file), EXTRA_GLOBALS)
    else:
        inspect_legacy(file, EXTRA_GLOBALS)


def _reason(error: Exception) -> str:
    """Return the fact in an error without torch's advice, which is to trust the file."""
    fact = re.search(
        r'GLOBAL [\w.]+|Unsupported operand \d+|asks for .+|but got <class .+>', str(error)
    )
    return (fact[0] if fact else first_line(error))[:LONGEST_REASON]


def _load_safetensors(file: Path) -> dict[str, object]:
    with import_safetensors().safe_open(str(file), 'pt') as content:
        meta = json.loads((content.metadata() or {}).get('meta', '{}'))
        meta = meta if isinstance(meta, dict) else {}
        check_depth(meta)
        tensors = OrderedDict((key, content.get_tensor(key)) for key in [*content.keys()])
        metadata = meta.pop(MODULES, None)
        if isinstance(metadata, dict):
            tensors._metadata = OrderedDict(metadata)
        return dict(meta=meta, state_dict=tensors)


def _load(file: Path) -> object:
    if digit_version(torch.__version__) >= digit_version(SOUND_TORCH):
        allowed = [(value, name) for name, value in EXTRA_GLOBALS.items()]
        with torch.serialization.safe_globals(allowed):
            return torch.load(file, map_location='cpu', weights_only=True)
    restricted = SimpleNamespace(
        __name__='restricted',
        Unpickler=_Unpickler,
        load=lambda f, **kwargs: _Unpickler(f, **kwargs).load(),
    )
    return torch.load(file, map_location='cpu', pickle_module=restricted, weights_only=False)


class _Unpickler(pickle.Unpickler):
    """Allow torch's own list for ``weights_only`` and ours; :func:`_inspect` saw to the rest."""

    def find_class(self, module: str, name: str) -> object:
        """Return an allowed class or function."""
        module = {'__builtin__': 'builtins'}.get(module, module)  # its name in old protocols
        allowed = {**torch._weights_only_unpickler._get_allowed_globals(), **EXTRA_GLOBALS}
        if f'{module}.{name}' not in allowed:
            raise pickle.UnpicklingError(f'asks for {module}.{name}')
        return allowed[f'{module}.{name}']
