"""Errors in one line, and values out of files in them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

LONGEST = 100  # characters of a value
NUM_SHOWN = 5


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def show(value: object) -> str:
    """Return the source of a value for an error, cut where a file could make it endless."""
    text = repr(value)
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}...'


def show_all(values: Iterable[object]) -> str:
    """Return the first few of several values for an error, as a list."""
    return f'[{", ".join(map(show, islice(values, NUM_SHOWN)))}]'
