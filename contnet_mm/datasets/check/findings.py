"""What a check has found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One kind of damage in one part of a data set, however many files it is in.

    Args:
        part: The part, such as 'train'.
        check: Short name of the check.
        what: What is wrong and what it leads to.
        mend: The command or change that mends it.
        examples: The first few offenders.
        count: How many there are.
        note: Whether it is worth knowing, but nothing is to be mended.
    """

    part: str
    check: str
    what: str
    mend: str = ''
    examples: tuple[str, ...] = ()
    count: int = 1
    note: bool = False


def found(
    part: str, check: str, what: str, mend: str, offenders: Iterable[object], note: bool = False
) -> Iterator[Finding]:
    """Yields one finding for all offenders, or none where there are none.

    Args:
        part: The part, such as 'train'.
        check: Short name of the check.
        what: What is wrong, such as 'images are missing'.
        mend: The command or change that mends it.
        offenders: Files or entries at fault.
        note: Whether nothing is to be mended.
    """
    offenders = list(offenders)
    if offenders:
        examples = tuple(str(offender) for offender in offenders[:SHOWN])
        yield Finding(part, check, what, mend, examples, len(offenders), note)
