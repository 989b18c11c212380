"""Write a config that trains with ConTNet in place of the backbone of any OpenMMLab config."""

from __future__ import annotations

import argparse
from pathlib import Path

from contnet_mm.apis.config import read_config
from contnet_mm.models.arch import ALIASES, ARCHS
from contnet_mm.swap.plan import check_options, plan_swap
from contnet_mm.swap.sandbox import failing, silence
from contnet_mm.swap.text.command import default_out, list_changes, parse_options
from contnet_mm.swap.text.write import (
    check_out,
    is_pure_python,
    read_back,
    relative_base,
    render_child,
    render_flat,
)
from contnet_mm.swap.trial.verify import verify_swap
from contnet_mm.utils.files import write_file


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config',
        metavar='CONFIG',
        help='path, or name such as mmdet::fcos/<file>.py, of any MMDetection, MMSegmentation or '
        'MMPretrain config',
    )
    parser.add_argument(
        '--arch', choices=[*ARCHS, *ALIASES], default='medium', help='(default: medium)'
    )
    parser.add_argument(
        '--checkpoint',
        metavar='FILE',
        help='ConTNet weights to start from (default: checkpoints/contnet-<arch>_in1k.pth where '
        'the old backbone started from weights, else none)',
    )
    parser.add_argument(
        '-o',
        '--out',
        type=Path,
        help='file to write (default: the name of CONFIG with _contnet-<arch> added, in the '
        'current folder)',
    )
    parser.add_argument(
        '--backbone-option',
        nargs='+',
        action='extend',
        default=[],
        metavar='key=value',
        help="arguments of ConTNet, for instance frozen_stages=1 'strides=(1,2,2,1)'",
    )
    parser.add_argument(
        '--flat',
        action='store_true',
        help='write it self-contained; default: inherit CONFIG, unless it is in pure-Python style',
    )
    return parser


def main() -> None:
    """Swap, verify, write and report; or say why not, and leave no file behind."""
    parser = make_parser()
    args = parser.parse_args()
    out = args.out or default_out(args.config, args.arch)
    try:
        check_out(out)
        options = check_options(parse_options(args.backbone_option))
        with silence(), failing(f'reading {args.config}'):
            original = read_config(args.config)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    try:
        with silence():
            swap = plan_swap(original, args.arch, args.checkpoint, options)
            if args.flat or is_pure_python(original):
                text = render_flat(swap, args.config)
            else:
                text = render_child(original, swap, relative_base(args.config, out))
            # What was written is built, not what was planned.
            what_ran = verify_swap(original, read_back(text, out, swap.config))
        check_out(out)
        write_file(out, text)
    except ValueError as error:
        parser.error(f'{args.config}: {error}')
    print(list_changes(original, swap), end='')
    if swap.warnings:
        print('\nto judge:', *(f'- {line}' for line in swap.warnings), sep='\n')
    print(f'\nverified: {what_ran}')
    print(f'{out}\nmim train {swap.config.default_scope} {out}')


if __name__ == '__main__':
    main()
