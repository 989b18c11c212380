"""Prediction for images and videos, by the inferencer of the library that a config belongs to."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from contnet_mm.apis.config import datasets_of, read_config
from contnet_mm.apis.model_zoo import find_meta, load_weights
from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.utils.errors import first_line
from contnet_mm.utils.files import write_file

TOP_K = 5  # classes of a classifier that are named
SUFFIXES = ('.png', '.jpg', '.jpeg')  # of pictures that are written
IMAGE_SUFFIXES = (*SUFFIXES, '.bmp', '.pgm', '.ppm', '.tif', '.tiff', '.webp')
VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')
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
    inferencer = load_inferencer(cfg, checkpoint, device, show_progress=False)
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


def load_inferencer(
    config: str | Path | Config,
    checkpoint: str | Path,
    device: str | None = None,
    show_progress: bool = True,
) -> object:
    """Build the inferencer of the library that a config belongs to, with weights and classes.

    It takes images by path or as arrays, a folder of images, or a video, whose frames are read one
    by one. :func:`contnet_mm.checkpoint.read.read_checkpoint` opens the checkpoint, never the
    library, which may run code that is in it. Class names that a file lacks come from the config's
    test data instead of from COCO or Cityscapes.

    Args:
        config: Name or path of a config of MMDetection, MMSegmentation or MMPretrain, or the
            config itself.
        checkpoint: A file with weights of the whole model.
        device: Such as ``'cpu'``; by default a CUDA device where there is one.
        show_progress: Whether to show a bar while it predicts.

    Returns:
        A DetInferencer, MMSegInferencer or ImageClassificationInferencer.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If there is no such config; if the checkpoint is refused, holds no weights, or
            does not cover the model; if the config has no test data, or nothing names the classes;
            or if the device cannot be used.
    """
    config = copy.deepcopy(config) if isinstance(config, Config) else read_config(config)
    device = _check_device(device)
    content = read_checkpoint(checkpoint)
    datasets = datasets_of(config, 'test')
    if not datasets:
        raise ValueError('the config has no test data, whose pipeline is to prepare images')
    config.test_dataloader.dataset = datasets[0]  # inferencers do not look into wrappers
    meta, scope = find_meta(config, content), config.default_scope
    if scope != 'mmpretrain' and not meta.get('classes'):
        raise ValueError(f'neither {checkpoint} nor the test data of the config name the classes')
    with warnings.catch_warnings():
        # Weights are loaded below; nothing here needs a visualizer's back end.
        message = 'Checkpoint is not loaded|weights is None|Failed to add'
        warnings.filterwarnings('ignore', message=message)
        if scope == 'mmdet':
            from mmdet.apis import DetInferencer

            inferencer = _subclass(_AnySource, DetInferencer)(config, device=device)
            palette = inferencer.model.dataset_meta['palette']  # the config's, or 'random'
            meta['palette'] = meta.get('palette') if palette == 'random' else palette
            inferencer.model.dataset_meta = inferencer.visualizer.dataset_meta = meta
        elif scope == 'mmseg':
            from mmseg.apis import MMSegInferencer

            inferencer = _subclass(_AnySource, MMSegInferencer)(config, device=device)
            # These become arguments of the visualizer.
            meta = {key: meta.get(key) for key in ('classes', 'palette')}
            inferencer.model.dataset_meta = meta
        else:
            from mmpretrain import ImageClassificationInferencer

            init_default_scope(scope)  # the others do so themselves
            kind = _subclass(_ClassifierOfAnySource, ImageClassificationInferencer)
            inferencer = kind(config, pretrained=False, device=device)
            inferencer.classes = meta.get('classes')
    inferencer.show_progress = show_progress
    load_weights(inferencer.model, content, checkpoint)
    return inferencer


def open_source(source: object) -> Sequence:
    """Return what an inferencer is to go through: paths, arrays, or a video that is read as needed.

    Args:
        source: Path of an image, a folder or a video; an image as an array; or a list of these
            images.

    Raises:
        ValueError: If a folder holds no image, or a video cannot be read.
    """
    if isinstance(source, (list, tuple)):
        return [str(item) if isinstance(item, Path) else item for item in source]
    if not isinstance(source, (str, Path)):
        return [source]
    path = Path(source)
    if path.is_dir():
        files = (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not (found := sorted(map(str, files))):
            raise ValueError(f'{path} holds no file that ends in {", ".join(IMAGE_SUFFIXES)}')
        return found
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return [str(source)]
    import mmcv

    if not path.is_file():
        raise ValueError(f'{path} is no file; give an image, a folder or a video')
    video = mmcv.VideoReader(str(path))
    if not video.opened or not len(video):
        raise ValueError(f'{path} is no video that OpenCV can read')
    return video


class _Batches:
    """Batches and their number, from which a progress bar knows when it is full."""

    def __init__(self, batches: Iterable, number: int) -> None:
        self._batches, self._number = batches, number

    def __iter__(self) -> Iterator:
        return iter(self._batches)

    def __len__(self) -> int:
        return self._number


class _AnySource:
    """Makes a library's inferencer take what :func:`open_source` takes."""

    show_progress = True

    def _inputs_to_list(self, inputs: object) -> Sequence:
        self._source = open_source(inputs)
        return self._source

    def preprocess(self, inputs: Sequence, batch_size: int = 1, **kwargs) -> Iterable:
        batches = super().preprocess(inputs, batch_size=batch_size, **kwargs)
        return _Batches(batches, ceil(len(inputs) / batch_size))

    def visualize(self, inputs: Iterable, preds: Sequence, **kwargs) -> list[np.ndarray] | None:
        if not isinstance(self._source, list):
            # Frames are BGR, as networks of all three want arrays; visualizers want them RGB.
            inputs = (np.ascontiguousarray(frame[..., ::-1]) for frame in inputs)
        return super().visualize(inputs, preds, **kwargs)


class _ClassifierOfAnySource(_AnySource):
    """The same for MMPretrain, which has one switch for all its progress bars."""

    def __call__(self, *args, **kwargs) -> list:
        from mmpretrain.utils import progress

        before = progress.disable_progress_bar
        progress.disable_progress_bar = not self.show_progress
        try:
            return super().__call__(*args, **kwargs)
        finally:
            progress.disable_progress_bar = before


def _subclass(mixin: type, kind: type) -> type:
    return type(kind.__name__, (mixin, kind), {'__doc__': kind.__doc__})


def _check_device(device: str | None) -> str:
    """Return the device to compute on, once a tensor could be made there."""
    if device is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(1, device=device)
    except Exception as error:  # AssertionError, RuntimeError and more, by kind of device
        raise ValueError(f'device {device!r} cannot be used: {first_line(error)}') from error
    return device


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

    [sample] = inferencer(str(image), return_datasamples=True)
    classes = inferencer.classes
    picture = UniversalVisualizer().visualize_cls(
        np.ascontiguousarray(pixels), sample, classes=classes, draw_gt=False
    )
    scores, labels = sample.pred_score.topk(min(TOP_K, len(sample.pred_score)))
    named = [classes[i] if classes else f'class {i}' for i in labels.tolist()]
    lines = [f'{n} {score:.3f}' for n, score in zip(named, scores.tolist(), strict=True)]
    return picture, lines
