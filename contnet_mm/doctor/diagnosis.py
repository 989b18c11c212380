"""What a check says."""

from __future__ import annotations

import re
from functools import partial
from typing import NamedTuple

STATUSES = ('ok', 'note', 'warning', 'problem')
BAD = STATUSES[2:]


class Diagnosis(NamedTuple):
    """One line of the report."""

    status: str  # one of STATUSES
    about: str
    text: str
    command: str = ''  # what fixes it
    causes: tuple[str, ...] = ()  # a problem about one of these explains this one


ok, note, warning, problem = (partial(Diagnosis, status) for status in STATUSES)


def parse(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version.

    >>> parse('2.11.0+cu130'), parse('2.0rc4'), parse('')
    ((2, 11, 0), (2, 0, 0), (0, 0, 0))
    """
    match = re.match(r'(\d+)(?:\.(\d+))?(?:\.(\d+))?', version)
    return tuple(int(number or 0) for number in match.groups()) if match else (0, 0, 0)
