"""Tables in Markdown, and pages whose tables are made by a command."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def make_row(cells: Iterable[object]) -> str:
    """Return one line of a table."""
    texts = (str(cell).replace('|', r'\|').replace('\n', ' ') for cell in cells)
    return f'| {" | ".join(texts)} |\n'


def make_table(header: Sequence[str], rows: Iterable[Iterable[object]], numbers: int = 0) -> str:
    """Return a table.

    Args:
        header: Names of the columns.
        rows: Cells, which may be of any type.
        numbers: How many columns, counted from the right, hold numbers.

    >>> print(make_table(('name', 'size'), [('a', 1)], numbers=1), end='')
    | name | size |
    | --- | ---: |
    | a | 1 |
    """
    align = ['---'] * (len(header) - numbers) + ['---:'] * numbers
    return ''.join(map(make_row, (header, align, *rows)))


def renew_page(page: Path, name: str, make: Callable[[str], str]) -> str:
    """Return the text of a page with all that a command has written made anew.

    That stands between ``<!-- name: begin ARGUMENTS -->`` and ``<!-- name: end -->``, each on a
    line of its own.

    Args:
        page: The Markdown file.
        name: Of the command.
        make: Gets the arguments and returns the new text, which ends with a line break.

    Raises:
        ValueError: If the page does not exist, or has no such pair of marks or half of one.
    """
    if not page.is_file():
        raise ValueError(f'{page} is no file; give a Markdown page')
    begin, end = f'<!-- {name}: begin', f'<!-- {name}: end -->'
    marked = re.compile(f'({begin}(.*?)-->\n).*?({end})', re.DOTALL)
    text = page.read_text(encoding='utf-8')
    pairs = len(marked.findall(text))
    if not pairs or pairs != text.count(begin) or pairs != text.count(end):
        raise ValueError(
            f'{page} has {text.count(begin)} times "{begin} ... -->" and {text.count(end)} times '
            f'"{end}", each on a line of its own; it must have as many, in pairs, and one at least'
        )
    return marked.sub(lambda match: match[1] + make(match[2].strip()) + match[3], text)
