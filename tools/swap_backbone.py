"""Writes a config that trains with ConTNet in place of the backbone of any OpenMMLab config."""

from __future__ import annotations

import argparse
import io
import warnings
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from mmengine.logging import MMLogger

from contnet_mm.models.arch import ALIASES, ARCHS
from contnet_mm.swap.plan import check_options, plan_swap
from contnet_mm.swap.text.command import default_out, make_table, parse_options, read_original
from contnet_mm.swap.text.write import (
    check_out,
    is_pure_python,
    read_back,
    relative_base,
    render_child,
    render_flat,
    write_config,
)
from contnet_mm.swap.trial.verify import verify_swap


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
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
        metavar='OUT',
        help='file to write (default: the name of the config with _contnet-<arch> added, in the '
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


@contextmanager
def quiet():
    """Keeps what the libraries log and print out of the output."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def main() -> None:
    """Swaps, verifies, writes and reports; or says why not, and leaves no file behind."""
    parser = make_parser()
    args = parser.parse_args()
    out = args.out or default_out(args.config, args.arch)
    try:
        check_out(out)
        options = check_options(parse_options(args.backbone_option))
        with quiet():
            original = read_original(args.config)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    try:
        with quiet():
            swap = plan_swap(original, args.arch, args.checkpoint, options)
            if args.flat or is_pure_python(original):
                text = render_flat(swap, args.config)
            else:
                text = render_child(original, swap, relative_base(args.config, out))
            # What was written is built, not what was planned.
            what_ran = verify_swap(original, read_back(text, out, swap.config))
            write_config(text, out, swap.config)
    except ValueError as error:
        parser.error(f'{args.config}: {error}')
    print(make_table(original, swap), end='')
    if swap.unknown:
        print('\nto judge:', *(f'- {line}' for line in swap.unknown), sep='\n')
    print(f'\nverified: {what_ran}')
    print(f'{out}\nmim train {swap.config.default_scope} {out}')


if __name__ == '__main__':
    main()
