"""Count the GPU operations of a training step, and the bytes that they move, without a GPU."""

from __future__ import annotations

import argparse

from contnet_mm.benchmark import count
from contnet_mm.benchmark.plan import NETWORKS, parse_size


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Prints a Markdown table. Views do not count, and fused attention counts once. '
        'GB are read and written in both passes, or kept by the forward pass for the backward '
        'pass; 1 GB = 10^9 bytes. Networks give four maps, as in tools/benchmark.py; loss and '
        'optimizer are left out.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    networks = ['contnet-m', 'contnet-m-relative', 'resnet50', 'swin-t', 'convnext-t']
    parser.add_argument(
        '--networks', nargs='+', choices=NETWORKS, default=networks, help='to count'
    )
    parser.add_argument(
        '--sizes', nargs='+', default=['2x800x1333'], metavar='SIZE', help='HxW (one image), BxHxW'
    )
    parser.add_argument(
        '--dtypes',
        nargs='+',
        choices=count.COUNTED_DTYPES,
        default=['float32', 'bfloat16-pure'],
        help='bfloat16-pure casts the weights; bfloat16 is autocast, where only the forward pass '
        'is counted',
    )
    return parser


def main() -> None:
    """Print the table, line by line."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        sizes = [parse_size(text) for text in dict.fromkeys(args.sizes)]
    except ValueError as error:
        parser.error(str(error))
    print(count.render_head(), end='', flush=True)
    for size in sizes:
        for dtype in dict.fromkeys(args.dtypes):
            for network in dict.fromkeys(args.networks):
                counted = count.count_network(network, size, dtype)
                print(count.render_row(network, size, dtype, counted), end='', flush=True)


if __name__ == '__main__':
    main()
