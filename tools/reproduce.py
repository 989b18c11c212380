"""Train and test the rows of the paper's tables, and compare what they give with what is expected.

Without --run it prints the plan: what is missing here, and every command.
Exit status: 0 if all is as expected, 1 if a row fails or is below, 2 if the command is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from mmengine.config import DictAction
from mmengine.logging import MMLogger

from contnet_mm.apis.config import resources
from contnet_mm.reproduce.launch import LAUNCHERS, Cluster
from contnet_mm.reproduce.plan import render_plan
from contnet_mm.reproduce.report import draw_report, is_bad, make_report, render_report
from contnet_mm.reproduce.rows import list_tables, read_rows
from contnet_mm.reproduce.run import STAGES, make_trials, run_trials
from contnet_mm.reproduce.save import save_report
from contnet_mm.utils.files import write_file


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('tables', nargs='+', metavar='TABLE', help=', '.join(list_tables()))
    parser.add_argument('--models', nargs='+', default=['*'], help='patterns of names of configs')
    parser.add_argument(
        '--published',
        action='store_true',
        help='only rows with a published value, baselines included',
    )
    parser.add_argument('--run', action='store_true', help='do it')
    parser.add_argument(
        '--gpus', type=int, default=None, help='in all (default: those that are there; 0: a CPU)'
    )
    parser.add_argument(
        '--gpus-per-row', type=int, help='of one training, so that several run side by side'
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, help='default: pytorch for several GPUs')
    parser.add_argument('--partition', help='of Slurm')
    parser.add_argument(
        '--gpus-per-node', type=int, metavar='N', help='of Slurm, at most (default: 8)'
    )
    parser.add_argument(
        '--srun-args',
        metavar='ARGS',
        help="of Slurm, in one word: --srun-args='--time=2-00:00:00 --account=NAME'",
    )
    parser.add_argument('--stage', nargs='+', choices=STAGES, default=STAGES, help='these alone')
    parser.add_argument('--skip', nargs='+', choices=STAGES, default=[], help='all but these')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/reproduce'))
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='for training and test: KEY=VALUE ...'
    )
    parser.add_argument(
        '--save',
        type=Path,
        metavar='REPORT',
        help='fill pages and metafiles with the values of a report (JSON) and do nothing else',
    )
    return parser


def share_gpus(args: argparse.Namespace) -> tuple[Cluster, int]:
    """Return what trains a row, and how many rows are trained side by side.

    Raises:
        ValueError: If the GPUs cannot be shared that way, or if stages to run need more.
    """
    there = torch.cuda.device_count()
    gpus = there if args.gpus is None else args.gpus
    per_row = gpus if args.gpus_per_row is None else args.gpus_per_row
    if per_row != gpus and (per_row < 1 or gpus % per_row):
        raise ValueError(f'{gpus} GPUs cannot be shared by rows of {per_row}')
    launcher = args.launcher or ('pytorch' if per_row > 1 else 'none')
    if args.run and gpus > there and launcher != 'slurm' and list_stages(args) != ['summary']:
        raise ValueError(
            f'this machine has {there} GPUs, not {gpus}: --gpus {there}, or --launcher slurm, '
            'which does not use those of this machine'
        )
    cluster = Cluster(per_row, launcher, args.partition, args.gpus_per_node, args.srun_args)
    return cluster, gpus // per_row if per_row else 1


def list_stages(args: argparse.Namespace) -> list[str]:
    """Return the stages to run, in their order."""
    return [stage for stage in STAGES if stage in args.stage and stage not in args.skip]


def main() -> int:
    """Print the plan, or run it, and return the exit status."""
    parser = make_parser()
    args = parser.parse_args()
    root = resources()
    try:
        if args.save is not None:
            report = json.loads(args.save.read_text(encoding='utf-8'))
            report['rows'] = [row for row in report['rows'] if row['table'] in args.tables]
            for path in save_report(report, root):
                print(f'wrote {path}')
            return 0
        cluster, num_parallel = share_gpus(args)
        rows = [
            row
            for table in args.tables
            for row in read_rows(table, args.models, root, args.published)
        ]
        trials = make_trials(rows, args.seeds, cluster, args.work_dir, args.cfg_options, root)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if not args.run:
        MMLogger.get_current_instance().setLevel('WARNING')  # models are built for their size
        print(render_plan(trials, num_parallel), end='')
        return 0
    stages = list_stages(args)
    try:
        outcome = run_trials(trials, stages, num_parallel, args.work_dir, root)
    except KeyboardInterrupt:
        parser.exit(130, 'interrupted; run the same command to go on\n')
    report = make_report(trials, [stage for stage in STAGES if stage not in stages], outcome)
    if 'summary' in stages:
        try:
            write_file(args.work_dir / 'report.json', json.dumps(report, indent=2) + '\n')
            write_file(args.work_dir / 'report.md', render_report(report))
            draw_report(report, args.work_dir / 'report.png')
        except OSError as error:
            parser.exit(1, f'the report cannot be written: {error}; run the same command again\n')
        print(f'\n{render_report(report)}\nreport: {args.work_dir}/report.{{json,md,png}}')
    return int(is_bad(report))


if __name__ == '__main__':
    sys.exit(main())
