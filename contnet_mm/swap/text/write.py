"""The text of a config with ConTNet in it: inheriting the config before, or self-contained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from contnet_mm.apis.config import find_config
from contnet_mm.swap.changes import Change, Swap, SwapError
from contnet_mm.swap.text.difference import first_difference, state_difference, to_plain
from contnet_mm.swap.text.source import clean_comment, write_assignment
from contnet_mm.utils.files import write_file

# What a reader looks for first; the rest keeps its order.
FIRST = ('_base_', 'custom_imports', 'model')


def is_pure_python(config: Config) -> bool:
    """Return whether a config was read from a pure-Python file, which imports what it names."""
    return bool(config._imported_names)


def render_child(original: Config, swap: Swap, base: str) -> str:
    """Return the text of a config that inherits the one before and states what changes.

    Args:
        original: The config before.
        swap: The config after, with a reason for each change.
        base: How the text names the config before: a path relative to its own folder, or
            ``mmdet::<file>``.

    Raises:
        SwapError: If no config that inherits can say it, because ``original`` is in pure-Python
            style, a variable of it is gone, or a changed value has no source.
    """
    if is_pure_python(original):
        raise SwapError('a config in pure-Python style is inherited by none but its own style')
    stated = state_difference(to_plain(original), to_plain(swap.config))
    return _render({'_base_': base, **stated}, swap.changes)


def render_flat(swap: Swap, original_name: str) -> str:
    """Return the text of a config that says everything itself.

    Args:
        swap: The config, with a reason for each change.
        original_name: Of the config before, for the head of the text.

    Raises:
        SwapError: If a value in it has no source.
    """
    head = f'# {clean_comment(original_name)} with ConTNet in it, self-contained.\n'
    return head + _render(to_plain(swap.config), swap.changes)


def relative_base(config_name: str, out: Path) -> str:
    """Return what a config file writes into ``_base_`` to inherit another.

    Args:
        config_name: As :func:`~contnet_mm.apis.config.read_config` takes it.
        out: Path of the file that inherits.

    Returns:
        ``mmdet::...`` as it is, else a path relative to the folder of ``out``.

    Raises:
        ValueError: If there is no such config.
    """
    if '::' in config_name:
        return config_name
    # MMEngine looks for the bases of a base without following links; so does this.
    return Path(os.path.relpath(find_config(config_name), out.parent)).as_posix()


def check_out(out: Path) -> None:
    """Raise unless a config can be written to a path.

    Raises:
        ValueError: If it exists, does not end in .py, or its folder does not exist.
    """
    if out.suffix != '.py':
        raise ValueError(f'{out} must end in .py')
    if os.path.lexists(out):
        raise ValueError(f'{out} exists; move it away, or give another name')
    if not out.parent.is_dir():
        raise ValueError(f'{out.parent} is no folder; make it, or give another one for {out.name}')


def read_back(text: str, out: Path, expected: Config) -> Config:
    """Return the config that a text gives in the folder of a path.

    Args:
        text: Of the config.
        out: Where it is to be written. A file beside it is written and removed again.
        expected: What it must be.

    Raises:
        SwapError: If it does not parse or is not what is expected.
        ValueError: If nothing can be written there.
    """
    unfinished = out.with_name(f'.{out.stem}.{os.getpid()}.unfinished.py')
    try:
        unfinished.write_text(text, encoding='utf-8')
    except OSError as error:
        raise ValueError(f'nothing can be written to {out.parent}: {error.strerror}') from error
    try:
        config = Config.fromfile(unfinished, import_custom_modules=False)
    except Exception as error:  # a config is code: anything can go wrong in it
        raise SwapError(
            f'what would be written to {out} does not parse: {type(error).__name__}: {error}'
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    where = first_difference(to_plain(config), to_plain(expected))
    if where is not None:
        raise SwapError(
            f'what would be written to {out} is not the config that was planned; the first '
            f'difference is at {".".join(map(str, where))}'
        )
    return config


def write_config(text: str, out: Path, expected: Config) -> None:
    """Write a config file, whole or not at all, if it gives what is expected.

    Args:
        text: Of the config.
        out: Path of a file that does not exist yet.
        expected: What it must parse to.

    Raises:
        SwapError: If it does not parse or is not what is expected.
        ValueError: If it cannot be written there.
    """
    check_out(out)
    read_back(text, out, expected)
    write_file(out, text)


def _render(variables: dict, changes: Sequence[Change]) -> str:
    comments = _place_comments(variables, changes)
    keys = [key for key in FIRST if key in variables]
    keys += [key for key in variables if key not in FIRST]
    parts = [write_assignment(key, variables[key], comments) for key in keys]
    text = ''
    for number, part in enumerate(parts):
        # One line may follow another; what is longer gets room around it.
        is_long = part.count('\n') > 1 or parts[number - 1].count('\n') > 1
        text += '\n' + part if number and is_long else part
    return text


def _place_comments(variables: dict, changes: Sequence[Change]) -> dict[tuple, list[str]]:
    """Return the reasons of changes by the nearest key that is written."""
    comments: dict[tuple, list[str]] = {}
    for change in changes:
        value, path = variables, ()
        for key in change.path:
            if not isinstance(value, dict) or key not in value:
                break
            value, path = value[key], (*path, key)
        why = clean_comment(change.why)
        if path and why not in comments.get(path, ()):
            comments.setdefault(path, []).append(why)
    for key, value in variables.items():
        _say_once(comments, (key,), value)
    return comments


def _say_once(comments: dict[tuple, list[str]], path: tuple, value: object) -> None:
    """Move what is said above every key of a dict to the dict; drop what the key before says."""
    if not isinstance(value, dict) or not value:
        return
    inner = [(*path, key) for key in value]
    for at, item in zip(inner, value.values(), strict=True):
        _say_once(comments, at, item)
    said = [comments.get(at) for at in inner]
    if said[0] and all(each == said[0] for each in said):
        above = comments.setdefault(path, [])
        above += [why for why in said[0] if why not in above]
        said.insert(0, said[0])
    else:
        said.insert(0, None)
    for at, before in zip(inner, said, strict=False):
        if before and comments.get(at) == before:
            del comments[at]
