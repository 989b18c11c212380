"""Where two configs differ, and what a config that inherits one has to state to be the other."""

from __future__ import annotations

from contextlib import suppress
from types import FunctionType

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject

from contnet_mm.swap.edit import KeyPath, SwapError

DELETE = '_delete_'
MISSING = object()


def to_plain(config: Config) -> dict:
    """Return a config as dicts, lists, tuples and values.

    Classes and functions that the registries look up, which pure-Python configs name by import,
    are given as the string that finds them, as MMEngine dumps them: ``'torch.optim.SGD'``. All
    others stay what they are.
    """
    return _to_plain(config._to_lazy_dict())


def _to_plain(value: object, key: object = None) -> object:
    if isinstance(value, dict):
        return {name: _to_plain(item, name) for name, item in dict.items(value)}
    if type(value) in (list, tuple):
        return type(value)(_to_plain(item) for item in value)
    is_looked_up = isinstance(key, str) and (key in ('type', 'constructor') or key[-5:] == '_type')
    if is_looked_up and isinstance(value, (LazyObject, LazyAttr)):
        return f'{value.module}.{value}'
    if is_looked_up and isinstance(value, (type, FunctionType)):
        return f'{value.__module__}.{value.__qualname__}'
    return value


def first_difference(left: object, right: object) -> KeyPath | None:
    """Return the path of the first difference; None if there is none.

    The order of keys is no difference; the kind of a value is: 1 is not 1.0, and a list no tuple.
    """
    if isinstance(left, dict) and isinstance(right, dict):
        pairs = [(key, left.get(key, MISSING), right.get(key, MISSING)) for key in left | right]
    elif type(left) is not type(right):
        return ()
    elif isinstance(left, (list, tuple)) and len(left) == len(right):
        pairs = zip(range(len(left)), left, right, strict=True)
    elif isinstance(left, float):  # nan is itself, and 0.0 is not -0.0
        return None if repr(left) == repr(right) else ()
    else:
        return None if left is right or left == right else ()
    inner = ((key, first_difference(one, other)) for key, one, other in pairs)
    return next(((key, *path) for key, path in inner if path is not None), None)


def state_difference(old: dict, new: dict) -> dict:
    """Return what a config that inherits ``old`` states to be ``new``.

    Dicts are merged key by key as MMEngine does. A dict that loses a key, or whose ``type`` is
    another one, is stated whole, with ``_delete_``; so is each list.

    Raises:
        SwapError: If no config that inherits ``old`` can be ``new``.
    """
    for key in old:
        if key not in new:
            raise SwapError(
                f'{key} is in the config and shall not be after the swap, which a config that '
                'inherits it cannot say; write it self-contained (--flat)'
            )
    stated = {}
    for key, value in new.items():
        before = old.get(key, MISSING)
        if first_difference(before, value) is not None:
            is_merged = before is not MISSING and isinstance(value, dict)
            stated[key] = _state_dict(before, value) if is_merged else value
    # Merging takes this key for its own, so that it can be added to nothing that is there.
    _check_no_delete(stated)
    return stated


def _state_dict(old: object, new: dict) -> dict:
    if isinstance(old, dict) and first_difference(old.get('type'), new.get('type')) is None:
        with suppress(SwapError):
            return state_difference(old, new)
    _check_no_delete(new)
    return {DELETE: True, **new}


def _check_no_delete(stated: dict) -> None:
    if DELETE in stated:
        raise SwapError(
            f'a key {DELETE} is left over in the config, which one that inherits it cannot '
            'repeat; write it self-contained (--flat)'
        )
