"""Checks of arguments: each returns the value, or raises naming it and what would be right."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from numbers import Integral, Real


def check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value`` if it is an integer in [low, high].

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{name} must be an integer, got {type(value).__name__}: {value!r}')
    if value < low or (high is not None and value > high):
        allowed = f'at least {low}' if high is None else f'from {low} to {high}'
        raise ValueError(f'{name} must be {allowed}, got {value}')
    return int(value)


def check_integers(
    name: str, values: object, low: int, high: int | None = None, length: int | None = None
) -> tuple[int, ...]:
    """Return ``values`` as a tuple if they are integers in [low, high], ``length`` of them.

    Raises:
        TypeError: If it is not a sequence of integers.
        ValueError: If there are too few or too many, or one is out of range.
    """
    return tuple(
        check_integer(name, value, low, high) for value in check_sequence(name, values, length)
    )


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False.

    Raises:
        TypeError: If it is anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, got {type(value).__name__}: {value!r}')
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        ValueError: If it is not.
    """
    if value not in choices:
        raise ValueError(f'{name} must be {" or ".join(map(repr, choices))}, got {value!r}')
    return value


def check_sequence(name: str, values: object, length: int | None = None) -> Sequence:
    """Return ``values`` if it is a tuple or a list, of ``length`` entries.

    Raises:
        TypeError: If it is neither.
        ValueError: If there are too few or too many.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(
            f'{name} must be a tuple or a list, got {type(values).__name__}: {values!r}'
        )
    if length is not None and len(values) != length:
        raise ValueError(f'{name} must have {length} entries, got {len(values)}: {values!r}')
    return values


def check_rate(name: str, value: object) -> float:
    """Return ``value`` as a float if it is a number in [0, 1).

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'{name} must be a number, got {type(value).__name__}: {value!r}')
    if not 0 <= value < 1:
        raise ValueError(f'{name} must be at least 0 and below 1, got {value}')
    return float(value)


def parse_size(text: str) -> tuple[int, int]:
    """Return height and width of an argument such as 480x640.

    Raises:
        argparse.ArgumentTypeError: If it is none, or a side is below 32 pixels.
    """
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(size) < 32:
        raise argparse.ArgumentTypeError(
            f'{text!r} must be HxW, 32 pixels or more, such as 480x640'
        )
    return size
