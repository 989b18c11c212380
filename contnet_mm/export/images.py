"""Images in the form in which a file takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS

from contnet_mm.apis.config import datasets_of
from contnet_mm.apis.inference import read_image
from contnet_mm.export.network import ExportedNetwork, Size


def fit(image: np.ndarray, size: Size) -> tuple[np.ndarray, tuple[float, float]]:
    """Enlarge or shrink an image as far as it fits into a size, keeping its ratio.

    Args:
        image: [h, w, 3] uint8.
        size: Height and width.

    Returns:
        The new image, and by how much its width and height grew.
    """
    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    new_width = max(1, min(size[1], int(width * ratio + 0.5)))
    new_height = max(1, min(size[0], int(height * ratio + 0.5)))
    image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    return image, (new_width / width, new_height / height)


class Fit:
    """The step of a test pipeline that :func:`fit` is, in place of the libraries' Resize."""

    def __init__(self, size: Size) -> None:
        self.size = size

    def __call__(self, results: dict) -> dict:
        """Fit the image; boxes and labels of a test stay as they are."""
        image, scale_factor = fit(results['img'], self.size)
        results.update(img=image, img_shape=image.shape[:2], scale_factor=scale_factor)
        return {**results, 'keep_ratio': True, 'pad_shape': image.shape[:2]}


def change_pipeline(pipeline: Compose, size: Size) -> None:
    """Let a test pipeline fit images into a size."""
    steps = pipeline.transforms
    resizing = [i for i, step in enumerate(steps) if type(step).__name__ == 'Resize']
    if resizing:
        steps[resizing[0]] = Fit(size)
    else:  # the first step loads
        steps.insert(1, Fit(size))


def make_reader(network: ExportedNetwork, config: Config) -> Callable[[str | Path], np.ndarray]:
    """Return a function that reads an image file as the network takes it, RGB, uint8 [3, h, w].

    Raises:
        ValueError: By that function, if the file is no image, or if the test pipeline of a
            classifier makes another size of it.
    """
    if network.task == 'classification':
        with TRANSFORMS.switch_scope_and_registry(config.default_scope) as registry:
            steps = [registry.build(step) for step in datasets_of(config, 'test')[0]['pipeline']]
        pipeline = Compose(steps)

    def read(path: str | Path) -> np.ndarray:
        image = np.ascontiguousarray(read_image(path))
        if network.task == 'classification':
            return to_rgb(pipeline(dict(img_path=str(path)))['inputs'])
        if network.is_padded:
            image = fit(image, network.size)[0]
        else:
            image = cv2.resize(image, network.size[::-1], interpolation=cv2.INTER_LINEAR)
        return image.transpose(2, 0, 1)

    return read


def to_rgb(inputs: object) -> np.ndarray:
    """Return what the libraries' pipelines give, BGR, uint8 [3, h, w], as RGB."""
    return np.ascontiguousarray(np.asarray(inputs)[::-1])
