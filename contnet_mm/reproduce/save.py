"""Write measured values into pages and metafiles, from a report alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from contnet_mm.reproduce.report import FAILED, NOT_RUN, show_value
from contnet_mm.reproduce.rows import METRICS, TOLERANCES
from contnet_mm.utils.files import write_file

COLUMN = 'measured here'


def save_report(report: Mapping, root: Path) -> list[Path]:
    """Fill the column "measured here" of the pages and the metrics of the metafiles.

    Args:
        report: As ``make_report`` returns it.
        root: The folder above ``configs``.

    Returns:
        The files that have changed. The same report a second time changes none.

    Raises:
        ValueError: If a row is not finished, or a page has no line for it. Nothing is written
            then.
    """
    unfinished = [row['name'] for row in report['rows'] if row['verdict'] in (FAILED, NOT_RUN)]
    if unfinished:
        raise ValueError(f'{", ".join(unfinished)} did not come to an end: nothing was saved')
    texts: dict[Path, str] = {}
    for row in report['rows']:
        folder = root / 'configs' / row['table']
        page, metafile = folder / 'README.md', folder / 'metafile.yml'
        for path in (page, metafile):
            texts.setdefault(path, path.read_text(encoding='utf-8'))
        texts[page] = _fill_page(texts[page], row, page)
        texts[metafile] = _fill_metafile(texts[metafile], row, report)
    changed = [path for path, text in texts.items() if path.read_text(encoding='utf-8') != text]
    for path in changed:
        write_file(path, texts[path])
    return changed


def _fill_page(text: str, row: Mapping, page: Path) -> str:
    """Put values into the last cell of the line that links to the config."""
    values = [show_value(name, row['got'][name]) for name in TOLERANCES if name in row['got']]
    lines, index = text.splitlines(keepends=True), None
    for i, line in enumerate(lines):
        if line.startswith('|') and COLUMN in line:
            index = [cell.strip() for cell in line.strip().strip('|').split('|')].index(COLUMN)
        elif not line.startswith('|'):
            index = None
        elif index is not None and re.search(rf'\(\./{re.escape(row["name"])}\.py\)', line):
            cells = line.strip()[1:-1].split('|')
            cells[index] = f' {" / ".join(values)} '
            lines[i] = f'|{"|".join(cells)}|\n'
            return ''.join(lines)
    raise ValueError(f'{page} has no line of {row["name"]} in a table with "{COLUMN}"')


def _fill_metafile(text: str, row: Mapping, report: Mapping) -> str:
    content = yaml.safe_load(text)
    entry = next(entry for entry in content['Models'] if entry['Name'] == row['name'])
    entry['Results'][0]['Metrics'] = {
        name: round(got['mean'], METRICS[name][2]) for name, got in row['got'].items()
    }
    spread = {name: x['spread'] for name, x in row['got'].items() if x['spread'] is not None}
    machine = report['machine']
    entry['Measured'] = {
        'Date': report['date'],
        'Seeds': [trial['seed'] for trial in row['trials']],
        'Spread': spread,
        'Versions': ', '.join(
            f'{name} {machine[name]}'
            for name in ('contnet_mm', 'PyTorch', 'MMEngine')
            if name in machine
        ),
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
