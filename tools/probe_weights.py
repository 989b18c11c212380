"""Asks weights which avg_down and pre_norm they were trained with, by their batch norms."""

from __future__ import annotations

import argparse
from pathlib import Path

from contnet_mm.apis.convert import read_network
from contnet_mm.apis.probe import probe
from contnet_mm.datasets.photographs import natural_crops


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('checkpoint', type=Path, help='official file, or any of ours')
    parser.add_argument(
        '--images',
        type=Path,
        help='folder of photographs like those of the training; scikit-image brings a few',
    )
    parser.add_argument('--crops', type=int, default=96, help='squares cut from them')
    parser.add_argument('--size', type=int, default=224, help='pixels of a square, as in training')
    return parser


def main() -> None:
    """Print what was read, the table and the verdict."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        network = read_network(args.checkpoint)
        crops = natural_crops(args.images, args.crops, args.size)
        found = probe(network.backbone, network.options, {}, crops)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error))
    print('\n'.join([*network.report(), *found.report()]))


if __name__ == '__main__':
    main()
