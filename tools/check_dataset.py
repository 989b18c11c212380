"""Checks a COCO, Cityscapes or ImageNet folder, or the data that a config reads.

Exit status: 0 if nothing is to be fixed, 1 if something is, 2 if the command is wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction

from contnet_mm.apis.config import read_config
from contnet_mm.datasets.check import (
    KINDS,
    Part,
    check_parts,
    parts_of_config,
    parts_of_folder,
)
from contnet_mm.datasets.check.issues import describe


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('kind', nargs='?', choices=KINDS, help='layout that is expected')
    parser.add_argument('root', nargs='?', type=Path, help='folder, such as data/coco')
    parser.add_argument(
        '--config',
        help='check what this config reads instead: path, or name such as mmdet::fcos/<file>.py',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='as for training: KEY=VALUE ...'
    )
    parser.add_argument(
        '--all-images', action='store_true', help='open every image, not 500 of each part'
    )
    return parser


def find_parts(args: argparse.Namespace) -> list[Part]:
    """Return what the command line asks for.

    Raises:
        ValueError: If it asks for both forms or none, or for what cannot be checked.
    """
    both_or_none = (args.config is None) == (args.kind is None)
    if both_or_none or (args.config is None and (args.root is None or args.cfg_options)):
        raise ValueError(f'give {{{",".join(KINDS)}}} ROOT or --config CONFIG, not both')
    if args.config is None:
        return parts_of_folder(args.kind, args.root)
    try:
        config = read_config(args.config, import_custom_modules=False)
        config.merge_from_dict(args.cfg_options or {})
    except Exception as error:  # a config is a program, and may fail as one
        raise ValueError(f'--config {args.config}: {error}') from error
    return parts_of_config(config)


def main() -> None:
    """Check, print and exit."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        parts = find_parts(args)
        issues = check_parts(parts, args.all_images)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for part in parts:
        print(f'checked {part.name}: {part.image_dir}')
    # What is to be fixed comes last, where it is read.
    for issue in sorted(issues, key=lambda issue: not issue.is_note):
        print(describe(issue))
    faults = sum(not issue.is_note for issue in issues)
    print(f'{faults} to fix, {len(issues) - faults} notes')
    sys.exit(1 if faults else 0)


if __name__ == '__main__':
    main()
