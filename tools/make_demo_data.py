"""Makes the demo data: handwritten digits on photographs, as COCO, Cityscapes and ImageNet."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from contnet_mm.datasets.demo import DemoOptions, make_demo_data


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    defaults = DemoOptions()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=Path('data/demo'), help='folder to make')
    parser.add_argument('--num-train', type=int, default=defaults.num_train, help='images')
    parser.add_argument('--num-val', type=int, default=defaults.num_val, help='held-out images')
    pairs = {
        '--size': (defaults.size, ('HEIGHT', 'WIDTH'), 'of each image in pixels'),
        '--digits': (defaults.digits, ('FEWEST', 'MOST'), 'digits per image'),
        '--digit-height': (defaults.digit_height, ('SMALLEST', 'LARGEST'), 'in pixels'),
    }
    for name, (default, metavar, text) in pairs.items():
        parser.add_argument(name, type=int, nargs=2, default=default, metavar=metavar, help=text)
    parser.add_argument('--seed', type=int, default=defaults.seed, help='equal seed, equal files')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace a data set, whatever its settings'
    )
    return parser


def main() -> None:
    """Makes the data set, or says that it is there already."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        options = DemoOptions(
            num_train=args.num_train,
            num_val=args.num_val,
            size=tuple(args.size),
            digits=tuple(args.digits),
            digit_height=tuple(args.digit_height),
            seed=args.seed,
        )
        num_images = options.num_train + options.num_val
        # disable=None: no bar where nobody watches, as in a log file.
        with tqdm(total=num_images, unit='image', disable=None) as bar:
            made = make_demo_data(args.out, options, args.overwrite, on_image=bar.update)
    except ValueError as error:
        parser.error(str(error))
    print(f'{args.out}: ' + ('made' if made else 'already there with these settings'))


if __name__ == '__main__':
    main()
