"""Python source of the values in a config, in the style of the configs here."""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping, Sequence

from contnet_mm.swap.changes import SwapError

WIDTH = 100
INDENT = 4

Path = tuple[str | int, ...]


def write_assignment(key: str, value: object, comments: Mapping[Path, Sequence[str]]) -> str:
    """Return the lines that give a variable of a config its value.

    Args:
        key: The name of the variable.
        value: Built from dicts, lists, tuples, strings, bytes, numbers, True, False and None.
        comments: What to say above a key, by the keys that lead to it, ``key`` being the first.

    Returns:
        The lines, formatted as ``ruff format`` does at this width with single quotes.

    Raises:
        SwapError: If the value, or one in it, has no source, or if the key cannot be a variable.
    """
    # The source calls these two, so that a variable of that name would break it.
    if not _is_name(key) or key in ('dict', 'float'):
        raise SwapError(f'{key!r} cannot be the name of a variable in a config file')
    text = _write(value, (key,), 0, len(f'{key} = '), comments)
    fits = len(f'{key} = {text}') <= WIDTH
    if not fits and '\n' not in text and not _is_open(value) and INDENT + len(text) <= WIDTH:
        text = f'(\n{" " * INDENT}{text}\n)'
    return ''.join([*_comment(comments.get((key,), ()), 0), f'{key} = {text}\n'])


def write_inline(value: object, path: Path = ()) -> str:
    """Return the source of a value on one line; see :func:`write_assignment`.

    Args:
        value: The value.
        path: Keys and places that lead to it, for the error.

    Raises:
        SwapError: If the value, or one in it, has no source.
    """
    if isinstance(value, dict):
        prefixes, opening, closing = _frame(value, path)
        items = [
            prefix + write_inline(item, (*path, key))
            for prefix, (key, item) in zip(prefixes, value.items(), strict=True)
        ]
    elif type(value) in (list, tuple):
        _, opening, closing = _frame(value, path)
        items = [write_inline(item, (*path, place)) for place, item in enumerate(value)]
        if len(items) == 1 and type(value) is tuple:
            closing = ',)'
    else:
        return _write_scalar(value, path)
    return opening + ', '.join(items) + closing


def clean_comment(text: str) -> str:
    """Return a text as one line that MMEngine's ``{{ }}`` leave alone."""
    return ' '.join(text.split()).replace('{{', '{ {')


def _write(
    value: object,
    path: Path,
    indent: int,
    before: int,
    comments: Mapping[Path, Sequence[str]],
    after: int = 0,
) -> str:
    """Return the source of a value, on several lines where one is too short or comments are in it.

    Args:
        value: The value.
        path: Keys that lead to it; places in lists are in it, and comments know none.
        indent: Columns before the line that it begins on.
        before: Columns on that line before the value.
        comments: As in :func:`write_assignment`.
        after: Columns on its last line after the value.
    """
    inline = write_inline(value, path)
    has_comments = any(len(at) > len(path) and at[: len(path)] == path for at in comments)
    fits = indent + before + len(inline) + after <= WIDTH
    if not _is_open(value) or (fits and not has_comments):
        return inline
    prefixes, opening, closing = _frame(value, path)
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    indent += INDENT
    lines = [opening + '\n']
    for prefix, (key, item) in zip(prefixes, pairs, strict=True):
        inner = (*path, key)
        lines += _comment(comments.get(inner, ()), indent)
        text = _write(item, inner, indent, len(prefix), comments, after=1)
        lines.append(f'{" " * indent}{prefix}{text},\n')
    return ''.join(lines) + ' ' * (indent - INDENT) + closing


def _is_open(value: object) -> bool:
    """Return whether a value can be spread over several lines."""
    return isinstance(value, (dict, list, tuple)) and len(value) > 0


def _frame(value: dict | list | tuple, path: Path) -> tuple[list[str], str, str]:
    """Return what stands before each item of a value, before the first and after the last."""
    if isinstance(value, dict):
        if all(type(key) is str and _is_name(key) for key in value):
            return [f'{key}=' for key in value], 'dict(', ')'
        return [write_inline(key, path) + ': ' for key in value], '{', '}'
    return [''] * len(value), *('[]' if isinstance(value, list) else '()')


def _comment(lines: Sequence[str], indent: int) -> list[str]:
    return [f'{" " * indent}# {line}\n' for line in lines]


def _is_name(key: str) -> bool:
    """Return whether a key can be written as ``key=...`` and comes back as it is."""
    # Python folds letters beyond ASCII: one key could come back as another.
    return (
        key.isascii() and key.isidentifier() and not keyword.iskeyword(key) and key != '__debug__'
    )


def _write_scalar(value: object, path: Path) -> str:
    kind = type(value)
    if value is None or kind in (bool, int):
        return repr(value)
    if kind is float:
        return repr(value).replace('e+', 'e') if math.isfinite(value) else f"float('{value}')"
    if kind in (str, bytes):
        return _quote(value)
    name = '.'.join(map(str, path)) or 'the value'
    raise SwapError(f'{name} is {value!r}, a {kind.__name__}, which no text of a config can hold')


def _quote(value: str | bytes) -> str:
    """Return the source of a string, in the quotes that need fewer backslashes."""
    is_bytes = isinstance(value, bytes)
    # A double quote in it makes repr() choose single ones; what was added is cut off again.
    body = repr(b'"' + value)[3:-1] if is_bytes else repr('"' + value)[2:-1]
    quote = "'"
    if body.count("'") > body.count('"'):
        quote = '"'
        body = body.replace('"', r'\"').replace(r'\'', "'")
    # MMEngine replaces {{ fileDirname }} and its like in the text of a config.
    body = body.replace('{{', r'{\x7b')
    return ('b' if is_bytes else '') + quote + body + quote
