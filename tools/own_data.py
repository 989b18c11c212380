"""Write a config that trains on data of your own: boxes, masks or a folder per class.

Exit status: 0 if the config was written, 1 if the data is to be fixed first, 2 if the command is
wrong or the base does not fit.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from contnet_mm.datasets.check.issues import describe
from contnet_mm.datasets.own.make import BadDataError, Request, default_out, make_config
from contnet_mm.datasets.own.plan import Options
from contnet_mm.datasets.own.report import summarise
from contnet_mm.utils.checks import parse_size


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'data',
        metavar='DATA',
        type=Path,
        help='folder of COCO JSON, Pascal VOC XML, YOLO text, images and masks, or a folder per '
        'class',
    )
    parser.add_argument(
        '--base',
        required=True,
        help='config to inherit: path, name of one of ours, or mmdet::fcos/<file>.py; with or '
        'without .py',
    )
    parser.add_argument(
        '--val',
        metavar='PART',
        help='part to validate on, or a share of the training images to hold out, such as 0.2 '
        '(default: val, valid or validation)',
    )
    parser.add_argument(
        '--test', metavar='PART', help='part to test on (default: test, else the one of --val)'
    )
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='names of the labels of masks, in their order; of boxes: the classes to train on',
    )
    parser.add_argument(
        '--size',
        metavar='HxW',
        type=parse_size,
        help='pixels of an image, or of the crop where the base trains on crops of one size '
        "(default: the base's)",
    )
    parser.add_argument(
        '--batch-size',
        type=positive,
        metavar='N',
        help='images per step (default: by their number)',
    )
    parser.add_argument(
        '--epochs',
        type=positive,
        metavar='N',
        help='passes over the images (default: by their number)',
    )
    parser.add_argument(
        '--weights',
        type=Path,
        metavar='FILE',
        help='start from the weights of a backbone, classifier, detector or segmentor (default: '
        'from scratch)',
    )
    parser.add_argument(
        '--repair',
        action='store_true',
        help='leave out what is damaged or twice there, cut boxes at the border; the data itself '
        'stays as it is',
    )
    parser.add_argument(
        '-o',
        '--out',
        type=Path,
        metavar='FILE',
        help='config to write (default: <base>_<folder>.py); converted files go to <name>_data '
        'beside it',
    )
    return parser


def positive(text: str) -> int:
    """Return a whole number above 0.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} must be a whole number above 0')
    return int(text)


def main() -> None:
    """Make the config and report; or list what is to be fixed, and leave no file behind."""
    parser = make_parser()
    args = parser.parse_args()
    request = Request(
        root=args.data,
        base=args.base,
        out=args.out or default_out(args.base, args.data),
        val=args.val,
        test=args.test,
        classes=tuple(args.classes) if args.classes else None,
        repair=args.repair,
        command=f'python -m contnet_mm own_data {shlex.join(sys.argv[1:])}',
    )
    options = Options(args.size, args.batch_size, args.epochs, args.weights)
    try:
        made = make_config(request, options)
    except BadDataError as error:
        # What is to be fixed comes last, where it is read.
        print(*map(describe, sorted(error.issues, key=lambda i: not i.is_note)), sep='\n')
        print(f'{error}; nothing was written')
        sys.exit(1)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(summarise(made, request), end='')


if __name__ == '__main__':
    main()
