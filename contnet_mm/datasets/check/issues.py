"""The issues of a data set, and the report that collects them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

NUM_EXAMPLES = 3


@dataclass(frozen=True)
class DatasetIssue:
    """One kind of damage in one part of a data set, however many files it is in.

    Args:
        part: The part, such as 'train'.
        check: Short name of the check.
        what: What is wrong and what it leads to.
        fix: The command or change that puts it right; empty for a note, which is worth knowing
            but asks for nothing.
        examples: The first few files or entries at fault.
        count: How many there are.
    """

    part: str
    check: str
    what: str
    fix: str = ''
    examples: tuple[str, ...] = ()
    count: int = 1

    @property
    def is_note(self) -> bool:
        """Whether nothing is to be fixed."""
        return not self.fix


def describe(issue: DatasetIssue) -> str:
    """Return an issue as a few lines for people."""
    number = f' ({issue.count})' if issue.examples else ''
    note = 'note ' if issue.is_note else ''
    lines = [f'{note}[{issue.part}] {issue.check}{number}: {issue.what}', *issue.examples]
    if issue.count > len(issue.examples) > 0:
        lines.append(f'and {issue.count - len(issue.examples)} more')
    if issue.fix:
        lines.append(f'fix: {issue.fix}')
    # A name may hold half a letter, which cannot be printed.
    return '\n    '.join(lines).encode(errors='backslashreplace').decode()


@dataclass
class Report:
    """Collects the issues of one part while it is checked.

    Args:
        part: The part, such as 'train'.
        all_images: Whether to open every image, not a sample.
        issues: What has been found so far.
        images: Size in bytes of each image of the part that is there, by its path.
    """

    part: str
    all_images: bool
    issues: list[DatasetIssue] = field(default_factory=list)
    images: dict[Path, int] = field(default_factory=dict)

    def add(self, check: str, what: str, faulty: Iterable[object], fix: str = '') -> None:
        """Add one issue for all that is faulty; none where nothing is.

        Args:
            check: Short name of the check.
            what: What is wrong, such as 'images are missing'.
            faulty: Files or entries at fault.
            fix: The command or change that puts it right; empty for a note.
        """
        faulty = [str(item) for item in faulty]
        if faulty:
            examples = tuple(faulty[:NUM_EXAMPLES])
            self.issues.append(DatasetIssue(self.part, check, what, fix, examples, len(faulty)))

    def add_one(self, check: str, what: str, fix: str = '') -> None:
        """Add an issue that is not about single files or entries."""
        self.issues.append(DatasetIssue(self.part, check, what, fix))

    def compare(self, check: str, what: str, number: int, expected: int | None, fix: str) -> None:
        """Add an issue if the number is not the expected one; None stands for any number."""
        if expected is not None and number != expected:
            self.add_one(check, f'{number} {what}, {expected} are expected', fix)
