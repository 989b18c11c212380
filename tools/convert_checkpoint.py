"""Convert checkpoints of ConTNet between the official layout and ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from contnet_mm.apis.convert import convert_file
from contnet_mm.checkpoint.options import UNTOLD
from contnet_mm.datasets.photographs import find_crops


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', type=Path, help='official file, or any of ours')
    parser.add_argument('target', type=Path, help='file to write: .pth, .pt or .safetensors')
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument(
        '--classifier',
        action='store_true',
        help='write an MMPretrain classifier, to check its accuracy; default: backbone alone',
    )
    layout.add_argument(
        '--to-official',
        action='store_true',
        help='write official keys, with the classifier if there is one',
    )
    for option in UNTOLD:
        parser.add_argument(
            f'--{option.replace("_", "-")}',
            action=argparse.BooleanOptionalAction,
            help=f'record that the network was trained with or without {option}; yours to say '
            'where the file does not tell, and stronger than what it tells',
        )
    parser.add_argument(
        '--images',
        type=Path,
        help='folder of photographs to infer from what is neither told nor stated, as '
        'probe_weights does; default: those of scikit-image',
    )
    parser.add_argument('--no-probe', action='store_true', help='infer nothing')
    parser.add_argument('--overwrite', action='store_true', help='replace the target')
    return parser


def main() -> None:
    """Convert, and print what was read and written."""
    parser = make_parser()
    args = parser.parse_args()
    layout = 'classifier' if args.classifier else 'official' if args.to_official else 'backbone'
    given = {option: getattr(args, option) for option in UNTOLD}
    stated = {option: value for option, value in given.items() if value is not None}
    try:
        needs_none = args.no_probe or len(stated) == len(UNTOLD)
        crops = None if needs_none else find_crops(print, args.images)
        lines = convert_file(args.source, args.target, layout, args.overwrite, stated, crops)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error))
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
