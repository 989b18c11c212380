"""Draws ground truth beside predictions of a detector, for some images of its data set."""

from __future__ import annotations

import argparse
from itertools import filterfalse
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from mmdet.apis import init_detector
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from PIL import Image
from pycocotools import mask as coco_mask

PAIRS_PER_ROW = 2
# Pixels of the picture for each pixel of an image, so that text fits on small images.
UPSCALE = 2
DPI = 100


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=Path, help='config of any MMDetection detector')
    parser.add_argument('checkpoint', type=Path, help='its weights')
    parser.add_argument('--out', type=Path, default=Path('detections.png'), help='PNG file')
    parser.add_argument('--num', type=int, default=8, help='images, spread over the data set')
    parser.add_argument('--score-thr', type=float, default=0.4, help='least score to draw')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='val')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser


def build_dataset(config: Config, split: str) -> torch.utils.data.Dataset:
    """Builds the data set of a split, as validation would read it."""
    dataset = config[f'{split}_dataloader'].dataset
    while 'dataset' in dataset:  # RepeatDataset and its like
        dataset = dataset.dataset
    pipeline = config.test_dataloader.dataset.pipeline
    return DATASETS.build({**dataset, 'pipeline': pipeline, 'test_mode': True})


def truth_objects(info: dict) -> list[tuple]:
    """Returns label, box (x0, y0, x1, y1), no score, and mask or None of each true instance."""
    objects = []
    for instance in info['instances']:
        is_rle = isinstance(instance.get('mask'), dict)
        mask = coco_mask.decode(instance['mask']) if is_rle else None
        objects.append((instance['bbox_label'], instance['bbox'], None, mask))
    return objects


def predicted_objects(model: torch.nn.Module, data: dict, score_thr: float) -> list[tuple]:
    """Returns label, box (x0, y0, x1, y1), score, and mask or None of each prediction."""
    with torch.no_grad():
        found = model.test_step(pseudo_collate([data]))[0].pred_instances.cpu()
    found = found[found.scores >= score_thr]
    masks = found.masks.numpy() if 'masks' in found else [None] * len(found)
    return list(zip(found.labels.tolist(), found.bboxes, found.scores.tolist(), masks, strict=True))


def draw(axes: Axes, image: np.ndarray, objects: list[tuple], classes: tuple[str, ...]) -> None:
    """Draws boxes, masks and labels over an image."""
    axes.imshow(image)
    axes.autoscale(False)
    colours = plt.get_cmap('tab10' if len(classes) <= 10 else 'tab20').colors
    for label, box, score, mask in objects:
        colour = colours[label % len(colours)]
        x0, y0, x1, y1 = (float(side) for side in box)
        axes.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=1.2))
        if mask is not None and np.any(mask):
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=0.8)
        text = classes[label] if score is None else f'{classes[label]}  {score:.2f}'
        # Above the box, or inside where the image ends there.
        row, align = (y0, 'bottom') if y0 > 8 else (y0 + 1, 'top')
        note = axes.text(x0, row, text, color='white', fontsize=9, weight='bold', va=align)
        note.set(bbox={'facecolor': colour, 'edgecolor': 'none', 'pad': 1}, in_layout=False)


def main() -> None:
    """Draws the picture."""
    parser = make_parser()
    args = parser.parse_args()
    if args.num < 1:
        parser.error(f'--num must be at least 1, got {args.num}')
    for path in filterfalse(Path.is_file, (args.config, args.checkpoint)):
        parser.error(f'{path} is no file')
    config = Config.fromfile(args.config)
    model = init_detector(config, str(args.checkpoint), device=args.device)
    try:
        dataset = build_dataset(config, args.split)
    except FileNotFoundError as error:
        parser.error(f'the data set of {args.config} is missing: {error}')
    chosen = np.linspace(0, len(dataset) - 1, min(args.num, len(dataset))).round().astype(int)
    rows, info = -(-len(chosen) // PAIRS_PER_ROW), dataset.get_data_info(0)
    inches = np.array([2 * PAIRS_PER_ROW * info['width'], rows * info['height']]) * UPSCALE / DPI
    figure = plt.figure(figsize=inches, layout='constrained')
    bare = {'frame_on': False, 'xticks': [], 'yticks': []}
    grid = figure.subplots(rows, 2 * PAIRS_PER_ROW, squeeze=False, subplot_kw=bare)
    for pair, index in zip(grid.reshape(-1, 2), chosen.tolist(), strict=False):
        info = dataset.get_data_info(index)
        image = np.asarray(Image.open(info['img_path']).convert('RGB'))
        predicted = predicted_objects(model, dataset[index], args.score_thr)
        draw(pair[0], image, truth_objects(info), dataset.metainfo['classes'])
        draw(pair[1], image, predicted, dataset.metainfo['classes'])
        pair[0].set_title('ground truth')
        pair[1].set_title('prediction')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=DPI)
    print(args.out)


if __name__ == '__main__':
    main()
