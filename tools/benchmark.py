"""Times backbones side by side: ConTNet, its plain reading, ResNet-50, Swin-T and ConvNeXt-T."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'contnet_mm').is_dir():  # a checkout runs where the package is not installed
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from contnet_mm.benchmark.machine import (  # noqa: E402
    command_line,
    describe_hardware,
    describe_software,
)
from contnet_mm.benchmark.plan import (  # noqa: E402
    COMPILED,
    DTYPES,
    DYNAMIC,
    EAGER,
    MODES,
    MULTISCALE,
    NETWORKS,
    PASSES,
    parse_size,
    plan_cells,
)
from contnet_mm.benchmark.report import render_report  # noqa: E402
from contnet_mm.benchmark.run import run_multiscale, run_table  # noqa: E402
from contnet_mm.benchmark.shapes import multiscale_shapes  # noqa: E402
from contnet_mm.utils.files import write_file  # noqa: E402


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Writes benchmark.json and benchmark.md. A cell that fails is '
        'reported as failed and does not end the run. Interrupted, it keeps what is done.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    networks = ['contnet-m', 'plain-m', 'resnet50', 'swin-t', 'convnext-t']
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=networks, help='to time')
    parser.add_argument(
        '--sizes',
        nargs='+',
        default=['224x224', '512x1024', '800x1333'],
        metavar='SIZE',
        help='HxW (one image), BxHxW, or multiscale: a list of shapes as in multi-scale training',
    )
    parser.add_argument('--passes', nargs='+', choices=PASSES, default=[*PASSES], help='to time')
    parser.add_argument(
        '--modes',
        nargs='+',
        choices=MODES,
        default=[*MODES],
        help='compiled is for the one size, and for any size with multiscale',
    )
    parser.add_argument(
        '--dtypes',
        nargs='+',
        choices=DTYPES,
        default=['float32', 'bfloat16'],
        help='float32 is without TF32; bfloat16 is autocast, bfloat16-pure casts the weights',
    )
    parser.add_argument('--rounds', type=int, default=15, help='in which each cell is timed')
    parser.add_argument('--shapes', type=int, default=60, help='of multiscale')
    parser.add_argument(
        '--reference', choices=NETWORKS, default='resnet50', help='network to compare with'
    )
    parser.add_argument(
        '--device',
        choices=('cpu', 'cuda'),
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='where to run',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the order and of the shapes')
    parser.add_argument('--no-memory', action='store_true', help='do not measure peak memory')
    parser.add_argument(
        '--quick',
        action='store_true',
        help='compile each network only in the setting that was the fastest eagerly',
    )
    parser.add_argument(
        '--out-dir', type=Path, default=Path('work_dirs/benchmark'), help='folder to write to'
    )
    return parser


def plan(args: argparse.Namespace) -> list[tuple]:
    """Returns the tables to fill: size, pass and cells of each.

    Raises:
        ValueError: If an argument cannot be.
    """
    if args.rounds < 1:
        raise ValueError(f'--rounds must be at least 1, got {args.rounds}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError("--device 'cuda' is not available here; choose 'cpu'")
    tables = []
    for size in dict.fromkeys(map(parse_size, args.sizes)):
        compiled = DYNAMIC if size == MULTISCALE else COMPILED
        modes = [EAGER if mode == EAGER else compiled for mode in args.modes]
        for name in dict.fromkeys(args.passes):
            cells = plan_cells(args.networks, modes, args.dtypes, name, args.device)
            if cells:
                tables.append((size, name, cells))
    if not tables:
        raise ValueError('nothing to run: networks, passes and dtypes do not go together')
    return tables


def run_all(args: argparse.Namespace, tables: list[tuple], run: dict) -> None:
    """Fills the tables of a run one after the other, and writes it again and again."""
    shapes = multiscale_shapes(args.shapes, args.seed)

    def save() -> None:
        write_file(args.out_dir / 'benchmark.json', json.dumps(run, indent=1) + '\n')

    def say(line: str) -> None:
        print(line, flush=True)

    for size, name, cells in tables:
        table = {'size': str(size), 'pass': name, 'cells': []}
        run['tables'].append(table)
        if size == MULTISCALE:
            run_multiscale(table, cells, shapes, args.device, save, say)
        else:
            run_table(
                table,
                cells,
                size,
                args.device,
                args.rounds,
                args.seed,
                with_memory=not args.no_memory,
                quick=args.quick,
                save=save,
                say=say,
            )
        save()


def write_page(out_dir: Path, run: dict, reference: str) -> None:
    """Writes the tables."""
    write_file(out_dir / 'benchmark.md', render_report(run, reference))
    print(f'{out_dir}/benchmark.md')


def main() -> None:
    """Run the benchmark."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        tables = plan(args)
        multiscale_shapes(args.shapes, args.seed)
    except ValueError as error:
        parser.error(str(error))
    run = dict(
        format=1,
        date=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        command=command_line(sys.argv[1:]),
        rounds=args.rounds,
        hardware=describe_hardware(args.device),
        software=describe_software(),
        tables=[],
    )
    # An empty store of compiled code makes the seconds of compiling those of a first time.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as store:
        os.environ['TORCHINDUCTOR_CACHE_DIR'] = store
        try:
            run_all(args, tables, run)
        except KeyboardInterrupt:
            print('interrupted: what is done is kept', file=sys.stderr)
            write_page(args.out_dir, run, args.reference)
            sys.exit(130)
    write_page(args.out_dir, run, args.reference)


if __name__ == '__main__':
    main()
