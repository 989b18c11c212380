"""Python source of the values in a config, in the style of the configs here."""

from __future__ import annotations

import keyword
import math

from contnet_mm.swap.edit import KeyPath, SwapError, dotted

WIDTH = 100
INDENT = 4


class Variable(str):
    """The name of a variable that stands above in the same config, in place of its value."""


def write_assignment(key: str, value: object) -> str:
    """Return the lines that give a variable of a config its value.

    Args:
        key: The name of the variable.
        value: Built from dicts, lists, tuples, strings, bytes, numbers, True, False and None.

    Returns:
        The lines, formatted as ``ruff format`` does at this width with single quotes, but for
        strings that hold both kinds of quotes.

    Raises:
        SwapError: If the value, or one in it, has no source, or if the key cannot be a variable.
    """
    # The source calls these two, so that a variable of that name would break it.
    if not _is_name(key) or key in ('dict', 'float'):
        raise SwapError(f'{key!r} cannot be the name of a variable in a config file')
    room = WIDTH - len(f'{key} = ')
    text = write_value(value, (key,), room=room)
    is_spread = isinstance(value, (dict, list, tuple)) and len(value) > 0
    if room < len(text) <= WIDTH - INDENT and not is_spread:
        text = f'(\n{" " * INDENT}{text}\n)'
    return f'{key} = {text}\n'


def write_value(value: object, path: KeyPath = (), indent: int = 0, room: float = math.inf) -> str:
    """Return the source of a value; see :func:`write_assignment`.

    Args:
        value: The value.
        path: Keys and indices that lead to it, for the error.
        indent: Columns before the line that it begins on.
        room: Columns that it may take; what is longer gets a line for each item.

    Raises:
        SwapError: If the value, or one in it, has no source.
    """
    if isinstance(value, dict):
        is_call = all(type(key) is str and _is_name(key) for key in value)
        opening, closing = ('dict(', ')') if is_call else ('{', '}')
        names = [f'{key}=' if is_call else write_value(key, path) + ': ' for key in value]
        parts = list(zip(names, value, value.values(), strict=True))
    elif type(value) in (list, tuple):
        opening, closing = '[]' if type(value) is list else '()'
        parts = [('', index, item) for index, item in enumerate(value)]
    else:
        return _write_scalar(value, path)
    inline = ', '.join(name + write_value(item, (*path, key)) for name, key, item in parts)
    comma = ',' if type(value) is tuple and len(value) == 1 else ''
    inline = opening + inline + comma + closing
    if not parts or len(inline) <= room:
        return inline
    indent += INDENT
    lines = opening + '\n'
    for name, key, item in parts:
        left = WIDTH - indent - len(name) - len(',')
        lines += f'{" " * indent}{name}{write_value(item, (*path, key), indent, left)},\n'
    return lines + ' ' * (indent - INDENT) + closing


def _is_name(key: str) -> bool:
    """Return whether a key can be written as ``key=...`` and comes back as it is."""
    # Python folds letters beyond ASCII: one key could come back as another.
    return (
        key.isascii() and key.isidentifier() and not keyword.iskeyword(key) and key != '__debug__'
    )


def _write_scalar(value: object, path: KeyPath) -> str:
    kind = type(value)
    if kind is Variable:
        return str(value)
    if value is None or kind in (bool, int):
        return repr(value)
    if kind is float:
        return repr(value).replace('e+', 'e') if math.isfinite(value) else f"float('{value}')"
    if kind in (str, bytes):
        # MMEngine replaces {{ fileDirname }} and its like in the text of a config.
        return repr(value).replace('{{', r'{\x7b')
    name = dotted(path) or 'the value'
    raise SwapError(f'{name} is {value!r}, a {kind.__name__}, which no text of a config can hold')
