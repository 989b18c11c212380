"""Draw what a detector, segmentor or classifier predicts for one image, and print it."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.logging import MMLogger

from contnet_mm.apis.inference import SUFFIXES, predict_image, write_picture


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', type=Path, help='file of an image')
    parser.add_argument(
        'config', help='path, or name such as mmdet::fcos/<file>.py; its library does the work'
    )
    parser.add_argument('checkpoint', type=Path, help='weights of the whole model')
    parser.add_argument('--out', type=Path, default=Path('image_demo.png'), help='PNG or JPEG')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score of a detection (default: 0.3)'
    )
    parser.add_argument('--device', help='such as cpu (default: CUDA where there is a GPU)')
    return parser


def main() -> None:
    """Write the picture and print the result."""
    parser = make_parser()
    args = parser.parse_args()
    if args.out.suffix.lower() not in SUFFIXES:
        parser.error(f'--out must end in one of {", ".join(SUFFIXES)}, got {args.out}')
    if args.out.resolve() == args.image.resolve():
        parser.error(f'--out must be another file than the image {args.image}')
    MMLogger.get_current_instance().setLevel('ERROR')  # the result alone is printed
    try:
        picture, lines = predict_image(
            args.image, args.config, args.checkpoint, args.device, args.score_thr
        )
        write_picture(picture, args.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print('\n'.join([*lines, str(args.out)]))


if __name__ == '__main__':
    main()
