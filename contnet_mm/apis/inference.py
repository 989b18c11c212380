"""Prediction for one image, by the inferencer of the library that a config belongs to."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from torch import nn

from contnet_mm.apis.config import datasets_of, read_config
from contnet_mm.checkpoint.load import NUM_LISTED, find_tensors
from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.utils.errors import first_line
from contnet_mm.utils.files import write_file

TOP_K = 5  # classes of a classifier that are named
SUFFIXES = ('.png', '.jpg', '.jpeg')
Prediction = tuple[np.ndarray, list[str]]  # picture, RGB, [H, W, 3], and lines about it


def predict_image(
    image: str | Path,
    config: str | Path,
    checkpoint: str | Path,
    device: str | None = None,
    score_thr: float = 0.3,
) -> Prediction:
    """Predict for one image and draw the result over it.

    Args:
        image: File of the image.
        config: Path or name of a detector's, segmentor's or classifier's config.
        checkpoint: Its weights.
        device: Such as ``'cpu'``; by default a CUDA device where there is one.
        score_thr: Detections with a lower score are left out.

    Returns:
        The picture, RGB, [H, W, 3], and lines of text that say what is in it.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If another file does not exist, or one cannot be read or does not fit.
    """
    pixels = read_image(image)
    cfg = read_config(config)
    inferencer = load_inferencer(cfg, checkpoint, device)
    if cfg.default_scope == 'mmdet':
        return _detect(inferencer, image, score_thr)
    if cfg.default_scope == 'mmseg':
        return _segment(inferencer, image)
    return _classify(inferencer, image, pixels)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as the libraries do; RGB, [H, W, 3].

    Raises:
        ValueError: If there is no such file, or if it is no image.
    """
    import cv2
    import mmcv

    if not Path(path).is_file():
        raise ValueError(f'{path} is no file; give an image')
    try:
        pixels = mmcv.imread(path)
    except cv2.error:  # an empty file
        pixels = None
    if pixels is None:
        raise ValueError(f'{path} is no image that OpenCV can read')
    return pixels[..., ::-1]


def write_picture(picture: np.ndarray, path: str | Path) -> None:
    """Write a picture, RGB, [H, W, 3], wholly or not at all.

    Raises:
        OSError: If it cannot be written there.
        ValueError: If the name ends in none of ``SUFFIXES``.
    """
    import cv2

    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f'{path} must end in one of {", ".join(SUFFIXES)}')
    _, encoded = cv2.imencode(suffix, np.ascontiguousarray(picture[..., ::-1]))
    write_file(path, encoded.tobytes())


def load_inferencer(config: Config, checkpoint: str | Path, device: str | None = None) -> object:
    """Build the inferencer of the library that a config belongs to, with weights and classes.

    :func:`contnet_mm.checkpoint.read.read_checkpoint` opens the checkpoint, never the library,
    which may run code that is in it. Class names that a file lacks come from the config's test data
    instead of from COCO or Cityscapes.

    Args:
        config: Of MMDetection, MMSegmentation or MMPretrain.
        checkpoint: A file with weights of the whole model.
        device: Such as ``'cpu'``; by default a CUDA device where there is one.

    Returns:
        A DetInferencer, MMSegInferencer or ImageClassificationInferencer.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If it is refused, holds no weights, or does not cover the model; if the config
            has no test data, or nothing names the classes; or if the device cannot be used.
    """
    device = _check_device(device)
    content = read_checkpoint(checkpoint)
    config = copy.deepcopy(config)
    datasets = datasets_of(config, 'test')
    if not datasets:
        raise ValueError('the config has no test data, whose pipeline is to prepare images')
    config.test_dataloader.dataset = datasets[0]  # inferencers do not look into wrappers
    meta = {**_dataset_meta(config, datasets[0]), **_file_meta(content)}
    scope = config.default_scope
    if scope != 'mmpretrain' and not meta.get('classes'):
        raise ValueError(f'neither {checkpoint} nor the test data of the config name the classes')
    with warnings.catch_warnings():
        # Weights are loaded below; nothing here needs a visualizer's back end.
        message = 'Checkpoint is not loaded|weights is None|Failed to add'
        warnings.filterwarnings('ignore', message=message)
        if scope == 'mmdet':
            from mmdet.apis import DetInferencer

            inferencer = DetInferencer(config, device=device, show_progress=False)
            palette = inferencer.model.dataset_meta['palette']  # the config's, or 'random'
            meta['palette'] = meta.get('palette') if palette == 'random' else palette
            inferencer.model.dataset_meta = inferencer.visualizer.dataset_meta = meta
        elif scope == 'mmseg':
            from mmseg.apis import MMSegInferencer

            inferencer = MMSegInferencer(config, device=device)
            inferencer.show_progress = False
            # These become arguments of the visualizer.
            meta = {key: meta.get(key) for key in ('classes', 'palette')}
            inferencer.model.dataset_meta = meta
        else:
            from mmpretrain import ImageClassificationInferencer

            init_default_scope(scope)  # the others do so themselves
            inferencer = ImageClassificationInferencer(config, pretrained=False, device=device)
            inferencer.classes = meta.get('classes')
    _load_weights(inferencer.model, content, checkpoint)
    return inferencer


def _check_device(device: str | None) -> str:
    """Return the device to compute on, once a tensor could be made there."""
    if device is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(1, device=device)
    except Exception as error:  # AssertionError, RuntimeError and more, by kind of device
        raise ValueError(f'device {device!r} cannot be used: {first_line(error)}') from error
    return device


def _dataset_meta(config: Config, dataset: Mapping) -> dict:
    """Return class names and colours of the config's test data, if it tells."""
    kind = dataset['type']
    if not isinstance(kind, type):
        with DATASETS.switch_scope_and_registry(config.default_scope) as registry:
            kind = registry.get(kind)
    meta = dict(getattr(kind, 'METAINFO', {}))
    given = dataset.get('metainfo')
    meta.update(given if isinstance(given, Mapping) else {})
    if dataset.get('classes'):  # MMPretrain's CustomDataset
        meta['classes'] = dataset['classes']
    return meta


def _file_meta(content: object) -> dict:
    """Return what a checkpoint says of its data set."""
    meta = content.get('meta') if isinstance(content, Mapping) else None
    if isinstance(meta, Mapping):
        meta = meta.get('dataset_meta') or {'classes': meta.get('CLASSES')}  # of OpenMMLab 1
    if not isinstance(meta, Mapping):
        return {}
    return {str(key).lower(): value for key, value in meta.items() if value is not None}


def _load_weights(model: nn.Module, content: object, checkpoint: str | Path) -> None:
    state_dict = find_tensors(content, str(checkpoint))
    if not state_dict:
        raise ValueError(f'{checkpoint} holds no state dict; give a checkpoint of the whole model')
    try:
        missing, unexpected = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1 : NUM_LISTED + 1]]
        raise ValueError(f'{checkpoint} does not fit the config: {" ".join(reasons)}') from error
    except ValueError as error:  # other options
        raise ValueError(f'{checkpoint} does not fit the config: {error}') from error
    surplus = (
        f'{len(unexpected)} of its {len(state_dict)} tensors are not in the model, the first are '
        + ', '.join(unexpected[:NUM_LISTED])
    )
    if missing:
        raise ValueError(
            f'{checkpoint} does not fit the config: it lacks {len(missing)} of '
            f'{len(model.state_dict())} tensors, the first are {", ".join(missing[:NUM_LISTED])}'
            + (f'; {surplus}' if unexpected else '')
        )
    if unexpected:
        warnings.warn(f'{checkpoint} may belong to another config: {surplus}', stacklevel=3)


def _detect(inferencer: object, image: str | Path, score_thr: float) -> Prediction:
    result = inferencer(str(image), return_vis=True, pred_score_thr=score_thr)
    found = result['predictions'][0]
    kept = [i for i, score in enumerate(found['scores']) if score >= score_thr]
    classes = inferencer.model.dataset_meta['classes']
    lines = [f'{len(kept)} objects with a score of at least {score_thr:g}']
    for i in kept:
        box = ' '.join(f'{edge:.0f}' for edge in found['bboxes'][i])
        lines.append(f'{classes[found["labels"][i]]} {found["scores"][i]:.3f} box {box}')
    return result['visualization'][0], lines


def _segment(inferencer: object, image: str | Path) -> Prediction:
    result = inferencer(str(image), return_vis=True)
    labels, numbers = np.unique(result['predictions'], return_counts=True)
    classes = inferencer.model.dataset_meta['classes']
    shares = numbers / numbers.sum()
    order = np.argsort(-numbers, kind='stable')
    return result['visualization'], [f'{classes[labels[i]]} {shares[i]:.1%}' for i in order]


def _classify(inferencer: object, image: str | Path, pixels: np.ndarray) -> Prediction:
    from mmpretrain.visualization import UniversalVisualizer

    # Called as a whole it gives either the sample or the picture, and prints a progress bar.
    [data] = inferencer.preprocess([str(image)])
    [sample] = inferencer.forward(data)
    classes = inferencer.classes
    picture = UniversalVisualizer().visualize_cls(
        np.ascontiguousarray(pixels), sample, classes=classes, draw_gt=False
    )
    scores, labels = sample.pred_score.topk(min(TOP_K, len(sample.pred_score)))
    named = [classes[i] if classes else f'class {i}' for i in labels.tolist()]
    lines = [f'{n} {score:.3f}' for n, score in zip(named, scores.tolist(), strict=True)]
    return picture, lines
