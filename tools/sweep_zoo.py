"""Swap ConTNet into every config that the libraries ship, and tell what became of each."""

from __future__ import annotations

import argparse
import os
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

from contnet_mm.apis.config import LIBRARIES
from contnet_mm.apis.mmcv_ops import COMPILED, HOW_TO_COMPILE, find_ops
from contnet_mm.swap.sweep import (
    FAILED,
    REFUSED,
    find_configs,
    make_tables,
    read_outcomes,
    sweep,
    write_outcomes,
)
from contnet_mm.utils.files import write_file
from contnet_mm.utils.markdown import renew_page


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Exit status: 1 if a config failed, else 0.'
    )
    parser.add_argument(
        'pattern',
        nargs='?',
        default='*',
        help="names of configs, with * for any characters, such as 'mmdet::fcos/*' (default: all)",
    )
    parser.add_argument(
        '--jobs', type=int, default=os.cpu_count(), help='processes (default: one for each core)'
    )
    parser.add_argument(
        '--seconds', type=int, default=300, help='after which a config has failed (default: 300)'
    )
    parser.add_argument(
        '--resume',
        type=Path,
        metavar='JSON',
        help='what --json wrote before: only what was refused or failed is tried again',
    )
    parser.add_argument('--json', type=Path, help='file for the outcome of each config')
    parser.add_argument(
        '--write', type=Path, metavar='PAGE', help='Markdown page whose marked tables are renewed'
    )
    return parser


def main() -> None:
    """Sweep, print the tables, and write what was asked for."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        if find_ops() != COMPILED:
            lacking = 'mmcv has no compiled operations here: configs that call one of them will '
            lacking += f'not train, or not predict. {HOW_TO_COMPILE}'
            if args.write:
                raise ValueError(f'not --write: {lacking}')
            print(f'NOTE: {lacking}', file=sys.stderr)
        if args.write:
            renew_page(args.write, 'sweep', str)  # before an hour's work, not after it
        names = {
            name: path
            for library in LIBRARIES
            for name, path in find_configs(library).items()
            if fnmatch(name, args.pattern)
        }
        if not names:
            raise ValueError(f'no config has a name like {args.pattern}')
        before = read_outcomes(args.resume) if args.resume else []
    except ValueError as error:
        parser.error(str(error))
    outcomes = [o for o in before if o.name in names and o.status not in (REFUSED, FAILED)]
    left = {name: path for name, path in names.items() if name not in {o.name for o in outcomes}}
    started = time.monotonic()
    for outcome in sweep(left, args.jobs, args.seconds):
        outcomes.append(outcome)
        if outcome.status == FAILED:
            print(f'{outcome.name}: {outcome.reason}', file=sys.stderr)
        minutes = (time.monotonic() - started) / 60
        print(f'\r{len(outcomes)}/{len(names)} in {minutes:.1f} min', end='', file=sys.stderr)
    print(file=sys.stderr)
    tables = make_tables(outcomes)
    print(tables)
    if args.json:
        write_outcomes(args.json, outcomes)
    if args.write:
        write_file(args.write, renew_page(args.write, 'sweep', lambda _: tables))
    sys.exit(any(outcome.status == FAILED for outcome in outcomes))


if __name__ == '__main__':
    main()
