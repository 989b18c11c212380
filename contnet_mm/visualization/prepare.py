"""Networks and images as a visualisation needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from contnet_mm.apis.config import datasets_of, read_config
from contnet_mm.apis.inference import read_image
from contnet_mm.apis.model_zoo import get_model
from contnet_mm.checkpoint.load import load_pretrained
from contnet_mm.models.contnet import ConTNet


@dataclass(frozen=True)
class PreparedImage:
    """An image behind the test pipeline of a config.

    Args:
        pixels: What the network sees, RGB, [h, w, 3] in uint8.
        inputs: The same, normalised and padded, [1, 3, H, W].
        data_samples: What the library tells a model of it.
    """

    pixels: np.ndarray
    inputs: Tensor
    data_samples: list | None


def read_model_config(name: str | Path, **backbone: object) -> Config:
    """Read a config and set arguments of its backbone.

    Args:
        name: Its path or name.
        **backbone: These arguments.

    Raises:
        ValueError: If there is no such config, or its model has no backbone.
    """
    config = read_config(name)
    if 'backbone' not in (config.get('model') or {}):
        raise ValueError(f'the model of {name} has no backbone')
    config.model.backbone.update(backbone)
    return config


def build_model(config: Config, checkpoint: str | Path | None) -> nn.Module:
    """Build a model of which only the backbone will run.

    Args:
        config: Its config.
        checkpoint: Weights; for a ConTNet of the backbone alone or more, for others of the whole
            model. None leaves them random.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If it is refused or does not cover the backbone.
    """
    model = get_model(config)
    if checkpoint is None:
        return model
    if not isinstance(model.backbone, ConTNet):
        return get_model(config, checkpoint)
    load_pretrained(model.backbone, str(checkpoint))
    return model


def name_network(config: str | Path, checkpoint: str | Path | None) -> str:
    """Return what a picture says of a network and its weights, in two lines.

    >>> print(name_network('configs/contnet/contnet-m_8xb32_in1k.py', None))
    contnet-m_8xb32_in1k
    random weights
    """
    weights = 'random weights' if checkpoint is None else f'weights: {Path(checkpoint).name}'
    return f'{Path(str(config).rpartition("::")[2]).stem}\n{weights}'


def prepare_image(config: Config, model: nn.Module, image: str | Path) -> PreparedImage:
    """Bring an image through the test pipeline and the normalisation of a config.

    Raises:
        ValueError: If the image cannot be read, or the config has no test data.
    """
    read_image(image)  # for its errors
    datasets = datasets_of(config, 'test')
    if not datasets:
        raise ValueError('the config has no test data, whose pipeline is to prepare images')
    steps = [step for step in datasets[0].pipeline if not _loads_truth(step)]
    with DefaultScope.overwrite_default_scope(config.default_scope):
        data = Compose(steps)({'img_path': str(image), 'img_id': 0})
        batch = model.data_preprocessor(pseudo_collate([data]), False)
    pixels = data['inputs'].permute(1, 2, 0).numpy()[..., ::-1]  # the libraries read BGR
    return PreparedImage(np.ascontiguousarray(pixels), batch['inputs'], batch.get('data_samples'))


def _loads_truth(step: Mapping) -> bool:
    kind = step['type']
    name = kind.__name__ if isinstance(kind, type) else kind.rpartition('.')[2]
    return name.startswith('Load') and name != 'LoadImageFromFile'


def normalise(model: nn.Module, images: np.ndarray) -> Tensor:
    """Normalise images of one size as a model's preprocessor does.

    Args:
        model: Of one of the three libraries.
        images: RGB, [B, H, W, 3] in uint8.

    Returns:
        [B, 3, H, W], padded where the preprocessor pads.
    """
    bgr = torch.from_numpy(np.ascontiguousarray(images[..., ::-1])).permute(0, 3, 1, 2)
    return model.data_preprocessor({'inputs': list(bgr)}, False)['inputs']
