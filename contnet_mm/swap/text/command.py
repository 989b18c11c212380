"""What the command line of the swap reads and prints."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction

from contnet_mm.apis.config import read_config
from contnet_mm.swap.backbone import short_name
from contnet_mm.swap.changes import Swap, SwapError
from contnet_mm.swap.text.difference import MISSING, to_plain
from contnet_mm.swap.text.source import write_inline

LONGEST_VALUE = 40  # columns


def read_original(name: str) -> Config:
    """Read the config before; as :func:`~contnet_mm.apis.config.read_config`.

    Raises:
        ValueError: Whatever goes wrong, with the name of the config.
    """
    try:
        return read_config(name)
    except (Exception, SystemExit) as error:  # a config is code: anything can go wrong in it
        message, _, _ = str(error).partition('\n')
        if isinstance(error, ValueError) and name in message:
            raise
        raise ValueError(
            f'{name} is no config that can be read: {type(error).__name__}: {message}'
        ) from error


def parse_options(pairs: Sequence[str]) -> dict[str, object]:
    """Return the arguments that words like ``norm_eval=True`` give, read like ``--cfg-options``.

    Raises:
        ValueError: If one has no ``=``, or a value that cannot be read.
    """
    read = DictAction(['--backbone-option'], 'options', nargs='+')
    options = Config()
    for pair in pairs:
        name, equals, value = pair.partition('=')
        if not (name and equals and value):
            raise ValueError(f'{pair!r} must have the form key=value')
        space = Namespace()
        try:
            read(None, space, [pair])
            options.merge_from_dict(space.options)
        except (AssertionError, TypeError) as error:  # brackets; a key of what is no dict
            raise ValueError(f'{pair!r} cannot be read: {error}') from error
    return options.to_dict()


def default_out(config_name: str, arch: str) -> Path:
    """Return the name of the new config, in the current folder."""
    stem = Path(config_name.replace('::', '/')).stem
    return Path(f'{stem}_contnet-{short_name(arch)}.py')


def make_table(original: Config, swap: Swap) -> str:
    """Return a Markdown table of what a swap changed: key, value before and after, reason."""
    before, after = to_plain(original), to_plain(swap.config)
    rows = [('key', 'was', 'is', 'why')]
    for change in swap.changes:
        values = [_shorten(_find(plain, change.path)) for plain in (before, after)]
        rows.append(('.'.join(map(str, change.path)), *values, change.why))
    # The last column ends where its text ends.
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]] + [3]
    rows.insert(1, tuple('-' * width for width in widths))
    lines = [
        ' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return ''.join(f'| {line} |\n' for line in lines)


def _find(value: object, path: Sequence[str | int]) -> object:
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return MISSING
    return value


def _shorten(value: object) -> str:
    if value is MISSING:
        return '-'
    try:
        text = write_inline(value)
    except SwapError:  # what no config can hold can still be shown
        text = ' '.join(repr(value).split())
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + '...'
