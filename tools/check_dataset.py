"""Checks a COCO, Cityscapes or ImageNet folder, or the data that a config reads.

Exit status: 0 if nothing is to be mended, 1 if something is, 2 if the command is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from mmengine.config import DictAction

from contnet_mm.apis.config import read_config
from contnet_mm.datasets.check import KINDS, Finding, check_parts, parts_of_config, parts_of_folder
from contnet_mm.datasets.check.parts import Part


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
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
    """Returns what the command line asks for.

    Raises:
        ValueError: If it asks for both forms or none, or for what cannot be checked.
    """
    if args.config is None:
        if args.kind is None or args.root is None or args.cfg_options:
            raise ValueError(f'give {{{",".join(KINDS)}}} ROOT, or --config CONFIG')
        return parts_of_folder(args.kind, args.root)
    if args.kind is not None:
        raise ValueError('give KIND and ROOT or --config, not both')
    try:
        config = read_config(args.config, import_custom_modules=False)
        config.merge_from_dict(args.cfg_options or {})
    except Exception as error:  # a config is a program, and may fail as one
        raise ValueError(f'--config {args.config}: {error}') from error
    return parts_of_config(config)


def show_progress(items: Iterable, text: str) -> Iterable:
    """Shows a bar, where somebody watches and tqdm is there."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    # Some terminals keep what a bar leaves; disable=None: none in a log file.
    return tqdm(items, desc=text, disable=None, leave=False)


def describe(finding: Finding) -> str:
    """Returns a finding as a few lines."""
    number = f' ({finding.count})' if finding.examples else ''
    lines = [f'[{finding.part}] {finding.check}{number}: {finding.what}']
    lines += [f'    {example}' for example in finding.examples]
    if finding.count > len(finding.examples) > 0:
        lines.append(f'    and {finding.count - len(finding.examples)} more')
    if finding.mend:
        lines.append(f'    mend: {finding.mend}')
    return '\n'.join(lines)


def main() -> None:
    """Checks, prints and exits."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        parts = find_parts(args)
        findings = check_parts(parts, every=args.all_images, progress=show_progress)
    except (ValueError, ImportError, OSError) as error:
        parser.error(str(error))
    for part in parts:
        print(f'checked {part.name}: {part.image_dir}')
    # What is to be mended comes last, where it is read.
    for finding in sorted(findings, key=lambda finding: not finding.note):
        print(('note ' if finding.note else '') + describe(finding))
    faults = sum(not finding.note for finding in findings)
    print(f'{faults} to mend, {len(findings) - faults} notes')
    sys.exit(1 if faults else 0)


if __name__ == '__main__':
    main()
