"""Time backbones side by side: ConTNet and common rivals."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import torch

from contnet_mm.benchmark import plan
from contnet_mm.benchmark.machine import describe_machine
from contnet_mm.benchmark.report import render_report
from contnet_mm.benchmark.run import Benchmark
from contnet_mm.utils.files import write_file

OUT_DIR = argparse.ArgumentParser(add_help=False)  # apart, since the report must not show it
OUT_DIR.add_argument(
    '--out-dir', type=Path, default=Path('work_dirs/benchmark'), help='folder to write to'
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Writes benchmark.json and benchmark.md. A case that fails is reported as failed '
        'and does not end the run. Interrupted, it keeps what is done.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        parents=[OUT_DIR],
    )

    networks = ['contnet-m', 'resnet50', 'swin-t', 'convnext-t']
    dtypes = 'float32 is without TF32; bfloat16 is autocast, bfloat16-pure casts the weights'
    for name, choices, default, text in (
        ('--networks', plan.NETWORKS, networks, 'to time'),
        ('--sizes', None, ['224x224', '512x1024', '800x1333'], 'HxW (one image), BxHxW'),
        ('--passes', plan.PASSES, [*plan.PASSES], 'to time'),
        ('--modes', plan.MODES, [*plan.MODES], 'compiled is for the one size'),
        ('--dtypes', plan.DTYPES, ['float32', 'bfloat16'], dtypes),
    ):
        parser.add_argument(name, nargs='+', choices=choices, default=default, help=text)
    parser.add_argument('--rounds', type=int, default=15, help='in which each case is timed')
    parser.add_argument(
        '--reference', choices=plan.NETWORKS, default='resnet50', help='network to compare with'
    )
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', choices=('cpu', 'cuda'), default=device, help='where to run')
    parser.add_argument('--seed', type=int, default=0, help='of the order in the rounds')
    parser.add_argument('--no-memory', action='store_true', help='do not measure peak memory')
    parser.add_argument(
        '--quick',
        action='store_true',
        help='compile each network only in the setting that was the fastest eagerly',
    )
    return parser


def main() -> None:
    """Run the benchmark."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        if args.rounds < 1:
            raise ValueError(f'--rounds must be at least 1, got {args.rounds}')
        if args.device == 'cuda' and not torch.cuda.is_available():
            raise ValueError("--device 'cuda' is not available here; choose 'cpu'")
        sizes = [plan.parse_size(text) for text in args.sizes]
        cases = plan.plan_cases(
            args.networks, sizes, args.passes, args.modes, args.dtypes, args.device
        )
    except ValueError as error:
        parser.error(str(error))
    facts = dict(
        date=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        command=' '.join(['python tools/benchmark.py', *OUT_DIR.parse_known_args()[1]]),
        rounds=args.rounds,
    )
    facts |= describe_machine(args.device)
    benchmark = Benchmark(
        args.out_dir / 'benchmark.json',
        dict(format=3, **facts),
        args.rounds,
        args.seed,
        with_memory=not args.no_memory,
        quick=args.quick,
    )
    status = 0
    # An empty cache of compiled code, so that the seconds of compiling are those of a first time.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ['TORCHINDUCTOR_CACHE_DIR'] = cache
        try:
            benchmark.run(cases)
        except KeyboardInterrupt:
            print('interrupted: what is done is kept', file=sys.stderr)
            status = 130
    page = args.out_dir / 'benchmark.md'
    write_file(page, render_report(facts, benchmark.results, args.reference))
    print(page)
    sys.exit(status)


if __name__ == '__main__':
    main()
