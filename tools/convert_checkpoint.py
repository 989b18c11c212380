"""Converts checkpoints of ConTNet between the official layout and ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from contnet_mm.apis.convert import convert_file


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', type=Path, help='official file, or any of ours')
    parser.add_argument('target', type=Path, help='file to write: .pth, .pt or .safetensors')
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument(
        '--classifier',
        dest='layout',
        action='store_const',
        const='classifier',
        help='write an MMPretrain classifier, to check its accuracy; default: backbone alone',
    )
    layout.add_argument(
        '--to-official',
        dest='layout',
        action='store_const',
        const='official',
        help='write official keys, with the classifier if there is one',
    )
    parser.add_argument(
        '--avg-down',
        action='store_true',
        help='note that the network was trained with avg_down=True, where the file does not tell',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace the target')
    parser.set_defaults(layout='backbone')
    return parser


def main() -> None:
    """Converts, and prints what was read and written."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        lines = convert_file(args.source, args.target, args.layout, args.avg_down, args.overwrite)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error))
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
