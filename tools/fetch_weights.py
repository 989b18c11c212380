"""Fetch the ImageNet weights of the paper's authors, check and convert them."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from contnet_mm.apis.fetch import fetch_weights
from contnet_mm.checkpoint.sources import FOLDER, MIRROR
from contnet_mm.datasets.photographs import find_crops
from contnet_mm.models.arch import ALIASES


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The files carry no licence, and we host none. They are official: the folder of '
        f'the authors (needs gdown); mirror: copies of a third party ({", ".join(MIRROR)}).',
    )
    names = [*ALIASES, *ALIASES.values()]
    parser.add_argument('arch', choices=names, metavar='ARCH', help=f'one of {", ".join(names)}')
    parser.add_argument(
        '--from',
        dest='source',
        default='official',
        metavar='SOURCE',
        help='official (default), mirror, or the http(s) address of a file',
    )
    parser.add_argument(
        '--folder', type=Path, default=FOLDER, help='where to write (default: %(default)s)'
    )
    parser.add_argument('--no-probe', action='store_true', help='infer no options of the network')
    parser.add_argument('--overwrite', action='store_true', help='replace the converted file')
    return parser


def main() -> None:
    """Fetch, and print what happens."""
    parser = make_parser()
    args = parser.parse_args()
    report = partial(print, flush=True)
    try:
        crops = None if args.no_probe else find_crops(report)
        fetch_weights(args.arch, args.source, args.folder, args.overwrite, report, crops)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, 'interrupted; run the same command to go on\n')


if __name__ == '__main__':
    main()
