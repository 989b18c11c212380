"""A look at the pickles of a checkpoint before torch makes anything of them.

torch's ``weights_only`` keeps a file from running code, not from asking for any amount of memory or
time, nor from naming storages that it does not hold. Here the opcodes are followed with
stand-ins in place of all that a pickle names, and each call is checked by its arguments.
"""

from __future__ import annotations

import math
import mmap
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import torch
import torch._weights_only_unpickler

from contnet_mm.checkpoint.depth import check_depth

REFUSED = pickle.UnpicklingError
# Tensors may share memory, and all of them may be copied: so many times what is there.
MAX_SHARED = 16
SPARE = 1 << 20  # bytes, for small files
KEYS = (str, int, float, bool, bytes, type(None))
NUMPY_KIND = re.compile(r'[<>=|]?[?bBhHiIlLqQefduUS]\d*')
STATISTICS = ('min', 'max', 'current', 'mean')  # of MMEngine's HistoryBuffer
HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
# Of a numpy type whose values are Python objects.
OBJECT_FLAGS = 0b111
# The parts of a file in torch's format from before 1.6, in front of and behind the contents.
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class _Storage:
    """Memory in the file, in bytes."""

    nbytes: int
    itemsize: int


class _Object:
    """Stands in for anything that is no container."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class _Ordered(dict):
    """Stands in for an OrderedDict or a Counter."""

    kind = 'OrderedDict'
    attributes: Mapping = {}


@dataclass(frozen=True)
class _Named:
    """Stands in for what a pickle names."""

    name: str
    inspector: _Inspector

    def __call__(self, *args: object) -> object:
        return self.inspector.call(self.name, args)


def inspect_zip(file: Path, sizes: Mapping[str, int], allowed: Mapping[str, object]) -> None:
    """Look through the pickle of an archive that torch saved.

    Args:
        file: The archive.
        sizes: Bytes of its members, unpacked, by their names without folder.
        allowed: What a pickle may name beside what ``weights_only`` allows.

    Raises:
        UnpicklingError: If it holds something that is refused.
    """
    content = torch._C.PyTorchFileReader(str(file)).get_record('data.pkl')
    inspector = _Inspector(BytesIO(content), allowed, sizes)
    check_depth(inspector.load())
    inspector.check_total()


def inspect_legacy(file: Path, allowed: Mapping[str, object]) -> None:
    """Look through the pickles of a file in torch's format from before 1.6; see `inspect_zip`."""
    with (
        file.open('rb') as stream,
        # Ends where the file ends, so that no length in it can ask for memory.
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        for expected in (LEGACY_MAGIC, LEGACY_PROTOCOL):
            if _Inspector(content, allowed).load() != expected:
                raise ValueError('it does not start as a checkpoint does')
        _Inspector(content, allowed).load()  # facts about the machine
        inspector = _Inspector(content, allowed, limit=len(content))
        check_depth(inspector.load())
        inspector.check_total()
        keys = _Inspector(content, allowed).load()
        if not isinstance(keys, list) or {*map(str, keys)} != {*map(str, inspector.storages)}:
            raise ValueError('it does not hold the storages that its tensors name')


class _Inspector(pickle._Unpickler):
    """Follows the opcodes of a pickle; those that ``weights_only`` does not know are refused."""

    def __init__(
        self,
        stream: BinaryIO | mmap.mmap,
        allowed: Mapping[str, object],
        sizes: Mapping[str, int] | None = None,
        limit: int = 0,
    ) -> None:
        super().__init__(stream, encoding='utf-8')
        of_torch = torch._weights_only_unpickler._get_allowed_globals()
        self.allowed = {**of_torch, **allowed}
        self.sizes, self.limit = sizes, limit
        self.storages: dict[object, _Storage] = {}
        self.nbytes = 0  # of all tensors

    def find_class(self, module: str, name: str) -> object:
        """Return a stand-in for what is allowed."""
        # Names of Python 2.
        module, name = pickle._compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = pickle._compat_pickle.IMPORT_MAPPING.get(module, module)
        if f'{module}.{name}' not in self.allowed:
            raise REFUSED(f'asks for {module}.{name}')
        return _Named(f'{module}.{name}', self)

    def persistent_load(self, pid: object) -> _Storage:
        """Return a stand-in for a storage that is in the file as a whole."""
        # torch's old format has a sixth part: a view of another storage, which is long gone.
        is_whole = isinstance(pid, tuple) and (len(pid) == 5 or (len(pid) == 6 and pid[5] is None))
        if not is_whole or pid[0] not in ('storage', b'storage'):
            raise REFUSED(f'asks for {_shorten(pid)} in place of a storage')
        _, kind, key, _, numel = pid[:5]
        if not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise REFUSED(f'asks for a storage {_shorten(key)} of {_shorten(numel)} numbers')
        if key not in self.storages:
            self.storages[key] = self._measure(kind, key, numel)
        return self.storages[key]

    def _measure(self, kind: object, key: str, numel: int) -> _Storage:
        name = kind.name if isinstance(kind, _Named) else ''
        if not name.endswith('Storage'):
            raise REFUSED(f'asks for a storage of kind {_shorten(kind)}')
        dtype = getattr(self.allowed[name], 'dtype', None)
        itemsize = dtype.itemsize if isinstance(dtype, torch.dtype) else 1
        nbytes = numel * itemsize
        if self.sizes is not None and self.sizes.get(f'data/{key}') != nbytes:
            raise ValueError(
                f'storage {key} is {nbytes} bytes by its name, and {self.sizes.get(f"data/{key}")} '
                'in the archive'
            )
        if self.sizes is None and nbytes > self.limit:
            raise ValueError(f'storage {key} is {nbytes} bytes, more than the whole file')
        return _Storage(nbytes, itemsize)

    def call(self, name: str, args: tuple) -> object:
        """Return a stand-in for what a call gives, if it may be made with these arguments."""
        check = CALLS.get(name)
        if check is None:
            raise REFUSED(f'asks for a call of {name}')
        try:
            return check(self, *args)
        except (TypeError, AttributeError, OverflowError) as error:
            raise REFUSED(f'asks for a call of {name} with {_shorten(args)}') from error

    def add_tensor(
        self,
        storage: _Storage,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        *rest: object,
    ) -> _Object:
        """Check that a tensor lies in its storage."""
        itemsize = storage.itemsize
        for value in rest:  # `_rebuild_tensor_v3` names the type of the numbers
            dtype = self.allowed.get(value.name) if isinstance(value, _Named) else None
            itemsize = dtype.itemsize if isinstance(dtype, torch.dtype) else itemsize
        numbers = [offset, *size, *stride]
        if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
            raise REFUSED(f'asks for a tensor of size {_shorten(size)}, stride {_shorten(stride)}')
        count = math.prod(size)
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if count and end * itemsize > storage.nbytes:
            raise REFUSED(
                f'asks for a tensor of size {_shorten(size)}, stride {_shorten(stride)} out of a '
                f'storage of {storage.nbytes} bytes'
            )
        self.nbytes += count * itemsize
        return _Object('tensor')

    def check_total(self) -> None:
        """Check that all tensors together are not much more than what is in the file."""
        held = sum(storage.nbytes for storage in self.storages.values())
        if self.nbytes > MAX_SHARED * held + SPARE:
            raise REFUSED(f'asks for tensors of {self.nbytes} bytes out of {held} in the file')

    def load_newobj(self) -> None:
        """Make an object of MMEngine's log history."""
        args, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, _Named) or kind.name != HISTORY or args != ():
            raise REFUSED(f'asks for an object of {_shorten(kind)} from {_shorten(args)}')
        self.append(_Object('history'))

    def load_build(self) -> None:
        """Take attributes, none of which hides a method that a reader calls."""
        state, owner = self.stack.pop(), self.stack[-1]
        kind = getattr(owner, 'kind', _shorten(owner))
        if isinstance(owner, _Ordered) and isinstance(state, dict):
            hidden = [key for key in state if not isinstance(key, str) or hasattr(OrderedDict, key)]
            if not hidden:
                owner.attributes = state
                return
            kind += f', {_shorten(hidden[0])}'
        elif (kind == 'history' and isinstance(state, dict)) or (
            isinstance(state, tuple)
            and (
                (kind == 'array' and _is_array_state(*state))
                or (kind == 'dtype' and _is_dtype_state(*state))
            )
        ):
            return
        raise REFUSED(f'asks for attributes of {kind}')

    def load_setitem(self) -> None:
        """Check a key before it is hashed, which can take for ever."""
        self._check_target(self.stack[-3], dict)
        _check_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        """Check keys as in :meth:`load_setitem`."""
        self._check_target(self.metastack[-1][-1], dict)
        for key in self.stack[::2]:
            _check_key(key)
        super().load_setitems()

    def load_append(self) -> None:
        """Append to lists alone."""
        self._check_target(self.stack[-2], list)
        super().load_append()

    def load_appends(self) -> None:
        """Append to lists alone."""
        self._check_target(self.metastack[-1][-1], list)
        super().load_appends()

    @staticmethod
    def _check_target(target: object, kind: type) -> None:
        if not isinstance(target, kind):
            raise REFUSED(f'asks to fill {_shorten(target)} as a {kind.__name__}')

    def refuse_operand(self) -> None:
        """Refuse an opcode that torch does not write."""
        raise REFUSED('asks for an opcode that torch does not write')

    KNOWN = (
        'GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 '
        'TUPLE3 NONE NEWFALSE NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1 '
        'BININT2 BINFLOAT BINUNICODE SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT '
        'LONG_BINPUT LONG1 PROTO STOP'
    )
    dispatch = dict.fromkeys(range(256), refuse_operand)
    dispatch |= {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
        for name in KNOWN.split()
    }
    dispatch |= {
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
    }


def _is_array_state(*state: object) -> bool:
    """Tell whether it is (version, shape, type, order, bytes); lists would hold objects."""
    is_whole = len(state) == 5 and isinstance(state[4], bytes)
    return is_whole and getattr(state[2], 'kind', '') == 'dtype'


def _is_dtype_state(*state: object) -> bool:
    """Tell whether it is (version, byte order, None, None, None, size, alignment, flags, ...)."""
    is_plain = len(state) in (8, 9) and state[2:5] == (None,) * 3
    return is_plain and type(state[7]) is int and not state[7] & OBJECT_FLAGS


def _check_key(key: object) -> None:
    parts = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, KEYS) for part in parts):
        raise REFUSED(f'asks for a key of {type(key).__name__}')


def _shorten(value: object) -> str:
    """Return a value for an error; what may be deep or in itself is named by its class alone."""
    if isinstance(value, _Named):
        return value.name
    if isinstance(value, tuple) and all(isinstance(item, KEYS) for item in value):
        return repr(value[:8])[:80]
    return repr(value)[:80] if isinstance(value, KEYS) else f'a {type(value).__name__}'


def _require(condition: bool) -> None:
    if not condition:
        raise TypeError


def _parameter(inspector: _Inspector, data: object, *rest: object) -> object:
    _require(getattr(data, 'kind', '') == 'tensor')
    return data


def _from_type(
    inspector: _Inspector, function: object, kind: object, args: tuple, state: object
) -> object:
    """Make a tensor with attributes, none of which hides one of torch's own."""
    _require(isinstance(function, _Named) and '_rebuild_' in function.name)
    _require(isinstance(state, dict) and not any(hasattr(torch.Tensor, str(k)) for k in state))
    return inspector.call(function.name, args)


def _ordered(inspector: _Inspector, pairs: object = ()) -> _Ordered:
    _require(isinstance(pairs, list | dict) or pairs == ())
    content = _Ordered()
    for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
        _check_key(key)
        content[key] = value
    return content


def _set(inspector: _Inspector, values: object = ()) -> set:
    _require(isinstance(values, list) or values == ())
    for value in values:
        _check_key(value)
    return set(values)


def _encode(inspector: _Inspector, text: str, encoding: str) -> bytes:
    _require(encoding in ('latin1', 'latin-1'))
    return text.encode('latin1')


def _bytearray(inspector: _Inspector, content: object = '', encoding: str = 'latin-1') -> _Object:
    _require(isinstance(content, str | bytes))  # a number would be a length
    return _Object('bytearray')


def _size(inspector: _Inspector, sizes: object = ()) -> tuple:
    _require(isinstance(sizes, tuple | list) and all(type(size) is int for size in sizes))
    return tuple(sizes)


def _scalars(inspector: _Inspector, *args: object) -> _Object:
    _require(all(isinstance(arg, KEYS) for arg in args))
    return _Object('scalar')


def _array(inspector: _Inspector, kind: object, shape: tuple, code: object) -> _Object:
    _require(isinstance(kind, _Named) and kind.name == 'numpy.ndarray')
    _require(type(shape) is tuple and shape == (0,))  # all else comes as its state
    return _Object('array')


def _dtype(inspector: _Inspector, kind: str, align: object = False, copy: object = True) -> _Object:
    _require(NUMPY_KIND.fullmatch(kind) is not None)
    return _Object('dtype')


def _numpy_scalar(inspector: _Inspector, dtype: object, content: object) -> _Object:
    _require(getattr(dtype, 'kind', '') == 'dtype' and isinstance(content, bytes))
    return _Object('scalar')


def _getattr(inspector: _Inspector, owner: object, name: str) -> _Object:
    if not (isinstance(owner, _Named) and owner.name == HISTORY and name in STATISTICS):
        raise REFUSED(f'asks for getattr of {_shorten(owner)}, {_shorten(name)}')
    return _Object('statistic')


# What may be called, and what looks at the arguments.
CALLS: dict[str, Callable[..., object]] = {
    'torch._utils._rebuild_tensor': _Inspector.add_tensor,
    'torch._utils._rebuild_tensor_v2': _Inspector.add_tensor,
    'torch._utils._rebuild_tensor_v3': _Inspector.add_tensor,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _from_type,
    'collections.OrderedDict': _ordered,
    'collections.Counter': _ordered,
    'builtins.set': _set,
    'builtins.complex': _scalars,
    'builtins.bytearray': _bytearray,
    'builtins.getattr': _getattr,
    '_codecs.encode': _encode,
    'torch.Size': _size,
    'torch.device': _scalars,
    'numpy.dtype': _dtype,
    **{f'numpy.{core}.multiarray._reconstruct': _array for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': _numpy_scalar for core in ('core', '_core')},
}
