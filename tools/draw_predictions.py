"""Draws truth beside predictions of a detector, segmentor or classifier on its data set."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from contnet_mm.apis.config import datasets_of, read_config
from contnet_mm.apis.inference import load_inferencer, read_image
from contnet_mm.utils.files import write_figure

PAIRS_PER_ROW = 2
# Inches of the picture for each panel, so that text fits on small images.
PANEL_WIDTH = 4.5


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of any of the three libraries')
    parser.add_argument('checkpoint', type=Path, help='its weights')
    parser.add_argument('--out', type=Path, default=Path('predictions.png'), help='PNG file')
    parser.add_argument('--num', type=int, default=8, help='images, spread over the data set')
    parser.add_argument('--score-thr', type=float, default=0.4, help='least score of a box')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='val')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser


def build_dataset(config: Config, split: str) -> torch.utils.data.Dataset:
    """Build the first data set of a split, as a test would read it.

    Raises:
        ValueError: If the config names none, or its files are missing.
    """
    datasets = datasets_of(config, split)
    if not datasets:
        raise ValueError(f'the config has no data for {split}')
    dataset, pipeline = datasets[0], datasets_of(config, 'test')[0].pipeline
    registry = importlib.import_module(f'{config.default_scope}.registry').DATASETS
    try:
        return registry.build({**dataset, 'pipeline': pipeline, 'test_mode': True})
    except FileNotFoundError as error:
        raise ValueError(f'the data set of the config is missing: {error}') from error


def decode_mask(mask: dict | list | None, height: int, width: int) -> np.ndarray | None:
    """Return a mask of a COCO file, run lengths or polygons, as [height, width], or None."""
    from pycocotools import mask as coco_mask

    if isinstance(mask, dict):
        lengths = isinstance(mask['counts'], list)
        return coco_mask.decode(coco_mask.frPyObjects(mask, height, width) if lengths else mask)
    polygons = [polygon for polygon in mask or [] if len(polygon) >= 6]  # 4 would be a box
    if not polygons:
        return None
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


def truth_objects(info: dict) -> list[tuple]:
    """Return label, box (x0, y0, x1, y1), no score, and mask or None of each true instance.

    Crowds and whatever else is ignored in training and evaluation are left out.
    """
    objects = []
    for instance in info['instances']:
        if not instance.get('ignore_flag'):
            mask = decode_mask(instance.get('mask'), info['height'], info['width'])
            objects.append((instance['bbox_label'], instance['bbox'], None, mask))
    return objects


def predicted_objects(sample: object, score_thr: float) -> list[tuple]:
    """Return label, box (x0, y0, x1, y1), score, and mask or None of each prediction."""
    found = sample.pred_instances.cpu()
    found = found[found.scores >= score_thr]
    masks = found.masks.numpy() if 'masks' in found else [None] * len(found)
    return list(zip(found.labels.tolist(), found.bboxes, found.scores.tolist(), masks, strict=True))


def draw_objects(
    axes: Axes, image: np.ndarray, objects: list[tuple], classes: tuple[str, ...]
) -> None:
    """Draw boxes, masks and labels over an image."""
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


def draw_labels(
    axes: Axes, image: np.ndarray, labels: torch.Tensor, palette: list[list[int]]
) -> None:
    """Draw a label map [1, height, width] over an image; black where a label has no colour."""
    labels = labels.cpu().numpy()[0]
    known = labels < len(palette)
    colours = np.asarray(palette)[np.where(known, labels, 0)] * known[..., None]
    axes.imshow((0.3 * image + 0.7 * colours).astype(np.uint8))


def draw_scores(axes: Axes, scores: torch.Tensor, names: list[str]) -> str:
    """Draw the scores of the likeliest classes; return the first with its score."""
    scores, labels = scores.cpu().sort(descending=True)
    likely = [names[label] for label in labels[:5].tolist()]
    axes.barh(range(len(likely)), scores[: len(likely)].numpy())
    axes.set(yticks=range(len(likely)), yticklabels=likely, xlim=(0, 1), frame_on=True)
    axes.invert_yaxis()
    return f'{likely[0]}  {float(scores[0]):.2f}'


def draw_pair(
    truth: Axes, prediction: Axes, info: dict, sample: object, metainfo: dict, score_thr: float
) -> None:
    """Draw what a data set says of an image (info) beside what a model predicts (sample)."""
    image, classes = read_image(info['img_path']), metainfo.get('classes')
    titles = ['ground truth', 'prediction']
    if 'pred_instances' in sample:
        draw_objects(truth, image, truth_objects(info), classes)
        draw_objects(prediction, image, predicted_objects(sample, score_thr), classes)
    elif 'pred_sem_seg' in sample:
        draw_labels(truth, image, sample.gt_sem_seg.data, metainfo['palette'])
        draw_labels(prediction, image, sample.pred_sem_seg.data, metainfo['palette'])
    else:
        truth.imshow(image)
        names = classes or [str(label) for label in range(len(sample.pred_score))]
        titles[0] += f': {names[int(sample.gt_label)]}'
        titles[1] += f': {draw_scores(prediction, sample.pred_score, names)}'
    truth.set_title(titles[0])
    prediction.set_title(titles[1])


def main() -> None:
    """Draw the picture."""
    parser = make_parser()
    args = parser.parse_args()
    if args.num < 1:
        parser.error(f'--num must be at least 1, got {args.num}')
    if args.out.suffix.lower() != '.png':
        parser.error(f'--out must end in .png, got {args.out}')
    if not args.checkpoint.is_file():
        parser.error(f'{args.checkpoint} is no file')
    try:
        config = read_config(args.config)
        model = load_inferencer(config, args.checkpoint, args.device).model
        dataset = build_dataset(config, args.split)
    except ValueError as error:
        parser.error(str(error))
    chosen = np.linspace(0, len(dataset) - 1, min(args.num, len(dataset))).round().astype(int)
    rows = -(-len(chosen) // PAIRS_PER_ROW)
    infos = [dataset.get_data_info(index) for index in chosen.tolist()]
    height, width = read_image(infos[0]['img_path']).shape[:2]
    figure = plt.figure(
        figsize=(2 * PAIRS_PER_ROW * PANEL_WIDTH, rows * PANEL_WIDTH * height / width),
        layout='constrained',
    )
    bare = {'frame_on': False, 'xticks': [], 'yticks': []}
    grid = figure.subplots(rows, 2 * PAIRS_PER_ROW, squeeze=False, subplot_kw=bare)
    for pair, index, info in zip(grid.reshape(-1, 2), chosen.tolist(), infos, strict=False):
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([dataset[index]]))[0]
        draw_pair(*pair, info, sample, dataset.metainfo, args.score_thr)
    write_figure(args.out, figure)
    print(args.out)


if __name__ == '__main__':
    main()
