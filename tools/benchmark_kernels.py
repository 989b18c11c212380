"""Time kernels of ConT-M one by one on a GPU: attention and fused kernels."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from contnet_mm.benchmark import kernels
from contnet_mm.benchmark.machine import describe_machine
from contnet_mm.benchmark.plan import parse_size
from contnet_mm.models.kernels import MAX_CHANNELS
from contnet_mm.utils.files import write_file


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Bytes are those that no kernel can avoid: the map read and written, in the '
        'backward pass with its gradients. Writes ways.md, kernels.json and kernels.md.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--size', default='8x800x1333', help='of the images, BxHxW')
    parser.add_argument('--ms', type=int, default=100, help='that each kernel is timed for')
    parser.add_argument(
        '--out-dir', type=Path, default=Path('work_dirs/benchmark'), help='folder to write to'
    )
    return parser


def main() -> None:
    """Time all kernels."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        size = parse_size(args.size)
    except ValueError as error:
        parser.error(str(error))
    if not torch.cuda.is_available():
        parser.error('there is no CUDA device, which the kernels are for')
    from triton.testing import do_bench

    def timer(step: Callable[[], object]) -> float:
        return do_bench(step, rep=args.ms, return_mode='median')

    ours = ('medium', size, 'cuda', torch.bfloat16)
    attention = (x for x in kernels.make_sublayers(*ours) if x.kind == 'attention')
    ways = kernels.render_attention([kernels.measure_attention(x, timer) for x in attention])
    print(ways, flush=True)
    write_file(args.out_dir / 'ways.md', ways)
    rows, facts = [], describe_machine('cuda')
    for sublayer in kernels.make_sublayers(*ours):
        rows += kernels.measure(sublayer, timer)
        print(kernels.render(rows[-2:]).split('\n', 2)[2], end='', flush=True)
        results = dict(size=args.size, **facts, rows=rows)  # interrupted, it keeps what is done
        write_file(args.out_dir / 'kernels.json', json.dumps(results, indent=1))
        write_file(args.out_dir / 'kernels.md', kernels.render(rows))
    print(args.out_dir / 'kernels.md')
    failed = [row for row in rows if row['error'] and row['channels'] <= MAX_CHANNELS]
    if failed:
        sys.exit(f'{len(failed)} of the kernels that fused=True runs failed')


if __name__ == '__main__':
    main()
