"""Makes the demo data: handwritten digits on photographs, as COCO, Cityscapes and ImageNet."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from contnet_mm.datasets.demo import DemoOptions, make_demo_data

# What each field of DemoOptions is, and the names of its values where there are two.
HELP = {
    'num_train': ('images', None),
    'num_val': ('held-out images', None),
    'size': ('of each image in pixels', ('HEIGHT', 'WIDTH')),
    'digits': ('digits per image', ('FEWEST', 'MOST')),
    'digit_height': ('in pixels', ('SMALLEST', 'LARGEST')),
    'seed': ('equal seed, equal files', None),
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=Path('data/demo'), help='folder to make')
    for field in fields(DemoOptions):
        text, metavar = HELP[field.name]
        parser.add_argument(
            '--' + field.name.replace('_', '-'),
            type=int,
            nargs=metavar and 2,
            default=field.default,
            metavar=metavar,
            help=text,
        )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace a data set, whatever its settings'
    )
    return parser


def main() -> None:
    """Make the data set, or say that it is there already."""
    parser = make_parser()
    args = vars(parser.parse_args())
    out, overwrite = args.pop('out'), args.pop('overwrite')
    try:
        options = DemoOptions(**args)
        # disable=None: no bar where nobody watches, as in a log file.
        total = options.num_train + options.num_val
        with tqdm(total=total, unit='image', disable=None) as bar:
            made = make_demo_data(out, options, overwrite, on_image=bar.update)
    except ValueError as error:
        parser.error(str(error))
    print(f'{out}: ' + ('made' if made else 'already there with these settings'))


if __name__ == '__main__':
    main()
