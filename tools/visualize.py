"""Draw what a network sees: receptive fields, attention in windows, class activation."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from contnet_mm.utils.files import write_figure
from contnet_mm.visualization import show

RES_50 = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest='kind', required=True)
    erf = kinds.add_parser('erf', help='effective receptive field of each map, beside another')
    attention = kinds.add_parser('attention', help='attention of one window per stage')
    cam = kinds.add_parser('cam', help='class activation by Grad-CAM; pip install grad-cam')
    for kind in (erf, attention, cam):
        kind.add_argument('config', help='path or name')
        kind.add_argument('checkpoint', nargs='?', help='weights (default: random ones)')
    erf.add_argument('image', help='photograph, or a folder of them')
    for kind in (attention, cam):
        kind.add_argument('image', help='file of an image')
    erf.add_argument(
        '--other', metavar='CONFIG', default=RES_50, help=f'to compare with (default: {RES_50})'
    )
    erf.add_argument(
        '--other-checkpoint', metavar='FILE', help='its weights (default: random ones)'
    )
    defaults = inspect.signature(show.show_fields).parameters
    for name, text in (('number', 'squares of the photographs'), ('side', 'pixels of a field')):
        default = defaults[name].default
        erf.add_argument(
            f'--{name}', type=int, default=default, help=f'{text} (default: {default})'
        )
    attention.add_argument(
        '--point',
        type=int,
        nargs=2,
        metavar=('X', 'Y'),
        help='pixel to look at (default: near the middle)',
    )
    cam.add_argument('--category', help='name or number of a class (default: the predicted one)')
    cam.add_argument('--level', type=int, help="which of the backbone's maps, from 1")
    for name, kind in kinds.choices.items():
        out = Path(f'{name}.png')
        kind.add_argument('--out', type=Path, default=out, help=f'PNG file (default: {out})')
    return parser


def main() -> None:
    """Draw the picture."""
    parser = make_parser()
    args = parser.parse_args()
    if args.out.suffix.lower() != '.png':
        parser.error(f'--out must end in .png, got {args.out}')
    MMLogger.get_current_instance().setLevel('WARNING')
    torch.manual_seed(0)  # random weights are the same each time
    network = args.config, args.checkpoint
    try:
        if args.kind == 'erf':
            networks = [network, (args.other, args.other_checkpoint)]
            figure = show.show_fields(networks, args.image, args.number, args.side)
        elif args.kind == 'attention':
            figure = show.show_attention(*network, args.image, args.point)
        else:
            figure = show.show_activation(*network, args.image, args.category, args.level)
        write_figure(args.out, figure)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        parser.error(str(error))
    print(args.out)


if __name__ == '__main__':
    main()
