"""What the command line of the swap reads and prints."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction

from contnet_mm.swap.edit import Swap, SwapError, dotted, find_value
from contnet_mm.swap.plan import short_name
from contnet_mm.swap.text.difference import MISSING, to_plain
from contnet_mm.swap.text.source import write_value
from contnet_mm.utils.markdown import make_table

LONGEST_VALUE = 40  # columns


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


def list_changes(original: Config, swap: Swap) -> str:
    """Return a Markdown table of what a swap changed: key, value before and after, reason.

    What is the same in several places stands in one row.
    """
    configs = to_plain(original), to_plain(swap.config)
    rows: dict[tuple, list[str]] = {}
    for path, why in swap.changes.items():
        values = (shorten(find_value(config, path, MISSING)) for config in configs)
        rows.setdefault((*values, why), []).append(dotted(path))
    return make_table(
        ('key', 'was', 'is', 'why'),
        (
            (keys[0] + (f' and {len(keys) - 1} more' if len(keys) > 1 else ''), *row)
            for row, keys in rows.items()
        ),
    )


def shorten(value: object) -> str:
    """Return the source of a value, or its beginning; ``-`` for ``MISSING``."""
    if value is MISSING:
        return '-'
    try:
        text = write_value(value)
    except SwapError:  # what no config can hold can still be shown
        text = ' '.join(repr(value).split())
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + '...'
