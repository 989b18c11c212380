"""Plots loss and validation metrics of a training, joining the runs that resumed it."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from contnet_mm.apis.training_log import Curves, read_training_log
from contnet_mm.utils.files import write_figure

METRICS = [f'coco/{kind}_{name}' for kind in ('bbox', 'segm') for name in ('mAP', 'mAP_50')]
METRICS += ['cityscapes/mAP', 'cityscapes/AP@50', 'mIoU', 'accuracy/top1']


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path, help='work directory of the training')
    parser.add_argument('--out', type=Path, help='PNG file (default: WORK_DIR/training.png)')
    parser.add_argument(
        '--metrics', nargs='+', default=METRICS, help='names to draw, those that were logged'
    )
    return parser


def draw_curves(axes: Axes, curves: Curves, names: list[str], marker: str = '') -> None:
    """Draw some of the curves, with the last value in the legend."""
    for name in names:
        steps, values = zip(*curves[name], strict=True)
        axes.plot(steps, values, marker=marker, label=f'{name} (last {values[-1]:.3g})')
    axes.grid(alpha=0.3)
    axes.legend()


def main() -> None:
    """Draw the picture."""
    parser = make_parser()
    args = parser.parse_args()
    out = args.out or args.work_dir / 'training.png'
    if out.suffix.lower() != '.png':
        parser.error(f'--out must end in .png, got {out}')
    try:
        log = read_training_log(args.work_dir)
    except ValueError as error:
        parser.error(str(error))
    losses = [name for name, points in log.train.items() if 'loss' in name and points]
    metrics = [name for name in args.metrics if log.val.get(name)]
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout='constrained')
    draw_curves(axes[0], log.train, losses)
    axes[0].set(title='training loss', xlabel='iteration', ylim=(0, None))
    if metrics:
        draw_curves(axes[1], log.val, metrics, marker='o')
    else:
        axes[1].text(0.5, 0.5, 'nothing validated yet', ha='center', transform=axes[1].transAxes)
    axes[1].set(title='validation', xlabel='epoch' if log.by_epoch else 'iteration')
    write_figure(out, figure)
    print(out)


if __name__ == '__main__':
    main()
