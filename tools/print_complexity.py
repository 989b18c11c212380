"""Print parameters and multiply-adds of configs beside the published values, as Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.logging import MMLogger

from contnet_mm.apis.complexity import DEFAULT_SIZES, MMDET2, make_table, renew_tables
from contnet_mm.utils.files import write_file


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'configs',
        nargs='*',
        metavar='CONFIG',
        help='path, or name such as mmdet::fcos/<file>.py, of any MMDetection, MMSegmentation or '
        'MMPretrain config',
    )
    sizes = ', '.join(f'{h} {w} for {scope}' for scope, (h, w) in DEFAULT_SIZES.items())
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help=f'of the image in pixels (default: {sizes})',
    )
    parser.add_argument(
        '--convention',
        choices=[MMDET2],
        help="count as MMDetection 2 did, and so the official README's table of COCO: trainable "
        'parameters, and multiply-adds of modules without the products inside attention '
        '(default size of detectors: 896 1344)',
    )
    parser.add_argument(
        '--write',
        type=Path,
        nargs='+',
        default=[],
        metavar='PAGE',
        help='Markdown files whose marked tables are to be renewed, instead of printing',
    )
    return parser


def main() -> None:
    """Print one table, or write those of pages."""
    parser = make_parser()
    args = parser.parse_args()
    if bool(args.configs) == bool(args.write) or (args.write and (args.size or args.convention)):
        parser.error('give configs (and --size, --convention), or --write and pages')
    MMLogger.get_current_instance().setLevel('WARNING')  # it would write into the table
    try:
        if args.configs:
            size = args.size and tuple(args.size)
            print(make_table(args.configs, size, args.convention), end='')
        for page in args.write:
            text = renew_tables(page)
            changed = text != page.read_text(encoding='utf-8')
            if changed:
                write_file(page, text)
            print(f'{page}: ' + ('renewed' if changed else 'nothing to renew'))
    except ValueError as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
