"""Draws truth beside predictions of a detector, segmentor or classifier on its data set."""

from __future__ import annotations

import argparse
import importlib
from itertools import filterfalse
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from PIL import Image

PAIRS_PER_ROW = 2
# Inches of the picture for each panel, so that text fits on small images.
PANEL_WIDTH = 4.5
DPI = 100
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=Path, help='config of any of the three libraries')
    parser.add_argument('checkpoint', type=Path, help='its weights')
    parser.add_argument('--out', type=Path, default=Path('predictions.png'), help='PNG file')
    parser.add_argument('--num', type=int, default=8, help='images, spread over the data set')
    parser.add_argument('--score-thr', type=float, default=0.4, help='least score of a box')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='val')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser


def build_dataset(config: Config, split: str) -> torch.utils.data.Dataset:
    """Builds the data set of a split, as validation would read it."""
    dataset = config[f'{split}_dataloader'].dataset
    while 'dataset' in dataset:  # RepeatDataset and its like
        dataset = dataset.dataset
    pipeline = config.test_dataloader.dataset.pipeline
    registry = importlib.import_module(f'{config.default_scope}.registry').DATASETS
    return registry.build({**dataset, 'pipeline': pipeline, 'test_mode': True})


def load_model(config: Config, checkpoint: Path, device: str) -> torch.nn.Module:
    """Builds the model of a config by its library's own function, with its weights."""
    apis = importlib.import_module(f'{config.default_scope}.apis')
    if config.default_scope == 'mmpretrain':
        return apis.get_model(config, pretrained=str(checkpoint), device=device)
    load = apis.init_detector if config.default_scope == 'mmdet' else apis.init_model
    return load(config, str(checkpoint), device=device)


def truth_objects(info: dict) -> list[tuple]:
    """Returns label, box (x0, y0, x1, y1), no score, and mask or None of each true instance."""
    from pycocotools import mask as coco_mask

    objects = []
    for instance in info['instances']:
        is_rle = isinstance(instance.get('mask'), dict)
        mask = coco_mask.decode(instance['mask']) if is_rle else None
        objects.append((instance['bbox_label'], instance['bbox'], None, mask))
    return objects


def predicted_objects(sample: object, score_thr: float) -> list[tuple]:
    """Returns label, box (x0, y0, x1, y1), score, and mask or None of each prediction."""
    found = sample.pred_instances.cpu()
    found = found[found.scores >= score_thr]
    masks = found.masks.numpy() if 'masks' in found else [None] * len(found)
    return list(zip(found.labels.tolist(), found.bboxes, found.scores.tolist(), masks, strict=True))


def draw_objects(
    axes: Axes, image: np.ndarray, objects: list[tuple], classes: tuple[str, ...]
) -> None:
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


def draw_detection(
    pair: np.ndarray, image: np.ndarray, info: dict, sample: object, args: argparse.Namespace
) -> None:
    """Draws true objects on the left, predicted ones on the right."""
    classes = args.classes
    draw_objects(pair[0], image, truth_objects(info), classes)
    draw_objects(pair[1], image, predicted_objects(sample, args.score_thr), classes)
    pair[0].set_title('ground truth')
    pair[1].set_title('prediction')


def draw_segmentation(
    pair: np.ndarray, image: np.ndarray, info: dict, sample: object, args: argparse.Namespace
) -> None:
    """Draws the true label map on the left, the predicted one on the right."""
    for axes, field, title in (
        (pair[0], sample.gt_sem_seg, 'ground truth'),
        (pair[1], sample.pred_sem_seg, 'prediction'),
    ):
        labels = field.data.cpu().numpy()[0]
        known = labels < len(args.palette)
        colours = np.asarray(args.palette)[np.where(known, labels, 0)] * known[..., None]
        axes.imshow((0.3 * image + 0.7 * colours).astype(np.uint8))
        axes.set_title(title)


def draw_classification(
    pair: np.ndarray, image: np.ndarray, info: dict, sample: object, args: argparse.Namespace
) -> None:
    """Draws the image on the left and the scores of its likeliest classes on the right."""
    names = args.classes or [str(label) for label in range(len(sample.pred_score))]
    scores, labels = sample.pred_score.cpu().sort(descending=True)
    likely = [names[label] for label in labels[:5].tolist()]
    pair[0].imshow(image)
    pair[0].set_title(f'ground truth: {names[int(sample.gt_label)]}')
    pair[1].barh(range(len(likely)), scores[: len(likely)].numpy())
    pair[1].set(yticks=range(len(likely)), yticklabels=likely, xlim=(0, 1), frame_on=True)
    pair[1].invert_yaxis()
    pair[1].set_title(f'prediction: {likely[0]}  {float(scores[0]):.2f}')


DRAW = {
    'mmdet': draw_detection,
    'mmseg': draw_segmentation,
    'mmpretrain': draw_classification,
}


def main() -> None:
    """Draws the picture."""
    parser = make_parser()
    args = parser.parse_args()
    if args.num < 1:
        parser.error(f'--num must be at least 1, got {args.num}')
    for path in filterfalse(Path.is_file, (args.config, args.checkpoint)):
        parser.error(f'{path} is no file')
    config = Config.fromfile(args.config)
    scope = config.get('default_scope')
    if scope not in LIBRARIES:
        parser.error(f'default_scope of {args.config} must be one of {LIBRARIES}, got {scope!r}')
    model = load_model(config, args.checkpoint, args.device)
    try:
        dataset = build_dataset(config, args.split)
    except FileNotFoundError as error:
        parser.error(f'the data set of {args.config} is missing: {error}')
    args.classes, args.palette = (dataset.metainfo.get(key) for key in ('classes', 'palette'))
    chosen = np.linspace(0, len(dataset) - 1, min(args.num, len(dataset))).round().astype(int)
    rows = -(-len(chosen) // PAIRS_PER_ROW)
    images = [read_image(dataset.get_data_info(index)) for index in chosen.tolist()]
    panel_height = PANEL_WIDTH * images[0].shape[0] / images[0].shape[1]
    figure = plt.figure(
        figsize=(2 * PAIRS_PER_ROW * PANEL_WIDTH, rows * panel_height), layout='constrained'
    )
    bare = {'frame_on': False, 'xticks': [], 'yticks': []}
    grid = figure.subplots(rows, 2 * PAIRS_PER_ROW, squeeze=False, subplot_kw=bare)
    for pair, index, image in zip(grid.reshape(-1, 2), chosen.tolist(), images, strict=False):
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([dataset[index]]))[0]
        DRAW[scope](pair, image, dataset.get_data_info(index), sample, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=DPI)
    print(args.out)


def read_image(info: dict) -> np.ndarray:
    """Returns the image of a data set's entry as RGB, [height, width, 3] uint8."""
    return np.asarray(Image.open(info['img_path']).convert('RGB'))


if __name__ == '__main__':
    main()
