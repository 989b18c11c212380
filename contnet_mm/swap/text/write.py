"""The text of a config with ConTNet in it: inheriting the config before, or self-contained."""

from __future__ import annotations

import os
import textwrap
from collections import defaultdict
from pathlib import Path

from mmengine.config import Config

from contnet_mm.apis.config import find_config
from contnet_mm.swap.edit import Swap, SwapError, dotted
from contnet_mm.swap.sandbox import failing
from contnet_mm.swap.text.difference import first_difference, state_difference, to_plain
from contnet_mm.swap.text.source import WIDTH, Variable, write_assignment

# What a reader looks for first; the rest keeps its order.
FIRST = ('_base_', 'custom_imports', 'model', 'metainfo', 'train_pipeline', 'test_pipeline')
PIPELINES = FIRST[-2:]
SHORT = 40  # columns; what takes no more is repeated


def is_pure_python(config: Config) -> bool:
    """Return whether a config was read from a pure-Python file, which imports what it names."""
    return bool(config._imported_names)


def render_child(original: Config, swap: Swap, base: str, title: str | None = None) -> str:
    """Return the text of a config that inherits the one before and states what changes.

    Args:
        original: The config before.
        swap: The config after, with a reason for each change.
        base: How the text names the config before: a path relative to its own folder, or
            ``mmdet::<file>``.
        title: What the text says it is. Default: the base with ConTNet in it.

    Raises:
        SwapError: If no config that inherits can say it, because ``original`` is in pure-Python
            style, a variable of it is gone, or a changed value has no source.
    """
    if is_pure_python(original):
        raise SwapError('a config in pure-Python style is inherited by none but its own style')
    old = to_plain(original)
    stated = state_difference(old, to_plain(swap.config))
    # What stands in several data sets is stated once, by the name that the base gives it.
    pipelines = {k: old[k] for k in PIPELINES if k in old and k not in stated}
    stated |= {name: value for name, value in pipelines.items() if _holds(stated, value)}
    title = title or f'{base} with ConTNet in it.'
    return _render(title, swap, {'_base_': base, **stated})


def render_flat(swap: Swap, original_name: str) -> str:
    """Return the text of a config that says everything itself.

    Args:
        swap: The config, with a reason for each change.
        original_name: Of the config before, for the head of the text.

    Raises:
        SwapError: If a value in it has no source.
    """
    title = f'{original_name} with ConTNet in it, self-contained.'
    return _render(title, swap, to_plain(swap.config))


def _render(title: str, swap: Swap, variables: dict) -> str:
    paths = defaultdict(list)
    for path, why in swap.changes.items():
        paths[why].append(dotted(path))
    comments = [title, *(f'- {", ".join(keys)}: {why}' for why, keys in paths.items())]
    text = ''.join(map(_comment, comments))
    is_long = True
    above: dict[str, object] = {}
    for key in dict.fromkeys(key for key in (*FIRST, *variables) if key in variables):
        part = write_assignment(key, _name_equal(variables[key], above))
        above[key] = variables[key]
        # One line may follow another; what is longer gets room around it.
        was_long, is_long = is_long, part.count('\n') > 1
        text += '\n' + part if was_long or is_long else part
    return text


def _holds(value: object, part: object) -> bool:
    """Return whether a value is in another one, at any depth."""
    if first_difference(value, part) is None:
        return True
    inner = value.values() if isinstance(value, dict) else value
    return isinstance(value, dict | list | tuple) and any(_holds(item, part) for item in inner)


def _name_equal(value: object, above: dict[str, object]) -> object:
    """Return a value with the names of variables for what stands above already in it."""
    if isinstance(value, dict | list) and len(repr(value)) > SHORT:
        for name, other in above.items():
            if name[0] != '_' and first_difference(value, other) is None:
                return Variable(name)
    if isinstance(value, dict):
        return {key: _name_equal(item, above) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_name_equal(item, above) for item in value)
    return value


def _comment(text: str) -> str:
    """Return a text as lines of comment that MMEngine's ``{{ }}`` leave alone."""
    text = ' '.join(text.split()).replace('{{', '{ {')
    options = dict(subsequent_indent='#   ', break_long_words=False, break_on_hyphens=False)
    return textwrap.fill(text, WIDTH, initial_indent='# ', **options) + '\n'


def relative_base(config_name: str, out: Path) -> str:
    """Return what a config file ``out`` writes into ``_base_`` to inherit another.

    That is ``mmdet::...`` as it is, else a path relative to the folder of ``out``.

    Raises:
        ValueError: If there is no such config.
    """
    if '::' in config_name:
        return config_name
    # MMEngine looks for the bases of a base without following links; so does this.
    return Path(os.path.relpath(find_config(config_name), out.parent)).as_posix()


def check_out(out: Path) -> None:
    """Raise ValueError for a path that exists, does not end in .py, or is in no folder."""
    if out.suffix != '.py':
        raise ValueError(f'{out} must end in .py')
    if os.path.lexists(out):
        raise ValueError(f'{out} exists; move it away, or give another name')
    if not out.parent.is_dir():
        raise ValueError(f'{out.parent} is no folder; make it, or give another one for {out.name}')


def read_back(text: str, out: Path, expected: Config) -> Config:
    """Return the config that a text gives where it is to be written.

    A file beside ``out`` is written and removed again.

    Raises:
        SwapError: If it does not parse, or is not the config that is expected.
        ValueError: If nothing can be written there.
    """
    unfinished = out.with_name(f'.{out.stem}.{os.getpid()}.unfinished.py')
    try:
        unfinished.write_text(text, encoding='utf-8')
        with failing(f'what would be written to {out} does not parse'):
            config = Config.fromfile(unfinished, import_custom_modules=False)
    except OSError as error:
        raise ValueError(f'nothing can be written to {out.parent}: {error.strerror}') from error
    finally:
        unfinished.unlink(missing_ok=True)
    where = first_difference(to_plain(config), to_plain(expected))
    if where is not None:
        raise SwapError(
            f'what would be written to {out} is not the config that was planned; the first '
            f'difference is at {dotted(where)}'
        )
    return config
