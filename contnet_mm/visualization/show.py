"""From a config, weights and an image to a picture."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor

from contnet_mm.apis.model_zoo import get_model
from contnet_mm.datasets.photographs import cut_crops
from contnet_mm.visualization.activation import ClassScores, class_activation
from contnet_mm.visualization.attention import attention_at
from contnet_mm.visualization.draw import draw_activation, draw_attention, draw_fields
from contnet_mm.visualization.prepare import (
    build_model,
    name_network,
    normalise,
    prepare_image,
    read_model_config,
)
from contnet_mm.visualization.receptive_field import MARGIN, effective_receptive_field

Network = tuple[str, 'str | Path | None']  # config and checkpoint
ALL_MAPS = (0, 1, 2, 3)


def show_fields(
    networks: list[Network], images: str | Path, number: int = 49, side: int = 384
) -> Figure:
    """Draw the effective receptive fields of the maps of one or more networks.

    Args:
        networks: Config and checkpoint of each; without a checkpoint its weights are random.
        images: A photograph or a folder of them; random squares of it are what the networks see.
        number: Number of squares; see
            :func:`~contnet_mm.visualization.receptive_field.effective_receptive_field`.
        side: Side of the fields in pixels.

    Raises:
        FileNotFoundError: If a checkpoint does not exist.
        ValueError: If a config, checkpoint or image is not what it should be.
    """
    crops = cut_crops(images, number, side + 2 * MARGIN)
    rows = []
    for config_name, checkpoint in networks:
        config = read_model_config(config_name, out_indices=ALL_MAPS)
        model = build_model(config, checkpoint).requires_grad_(False)
        name = name_network(config_name, checkpoint)
        inputs = (normalise(model, crops[i : i + 1]) for i in range(len(crops)))
        inputs = track(inputs, name.partition('\n')[0], total=len(crops))
        fields = effective_receptive_field(model.backbone, inputs, side)
        rows.append((name, fields, _strides(model.backbone, normalise(model, crops[:1]))))
    return draw_fields(rows, number)


def _strides(backbone: torch.nn.Module, image: Tensor) -> list[int]:
    with torch.no_grad():
        return [image.shape[2] // x.shape[2] for x in backbone(image)]


def show_attention(
    config: str | Path,
    checkpoint: str | Path | None,
    image: str | Path,
    point: tuple[int, int] | None = None,
) -> Figure:
    """Draw the attention of one window per stage, that of the second encoder of the last block.

    Args:
        config: Path or name of a config with ConTNet as backbone.
        checkpoint: Weights of the backbone or more; None leaves them random.
        image: File of an image, which goes through the test pipeline of the config.
        point: Column and row of a pixel of the image as the network sees it; by default the middle
            of the window of stage 1 that the middle of the image is in.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If an argument is not what it should be.
    """
    cfg = read_model_config(config)
    model = build_model(cfg, checkpoint)
    prepared = prepare_image(cfg, model, image)
    height, width = prepared.pixels.shape[:2]
    column, row = point or (_middle(width), _middle(height))
    if not (0 <= column < width and 0 <= row < height):
        raise ValueError(f'point {column} {row} is not in the image of {width} x {height} pixels')
    windows = [last for _, last in attention_at(model.backbone, prepared.inputs, row, column)]
    return draw_attention(name_network(config, checkpoint), prepared.pixels, windows, row, column)


def _middle(length: int) -> int:
    """Return a coordinate near the middle that is no window's border; 56 pixels are 14 tokens."""
    return min(length // 2 // 56 * 56 + 28, length - 1)


def show_activation(
    config: str | Path,
    checkpoint: str | Path | None,
    image: str | Path,
    category: str | None = None,
    level: int | None = None,
) -> Figure:
    """Draw where an image speaks for a class, by Grad-CAM.

    Args:
        config: Path or name of a config.
        checkpoint: Weights of the whole model; None leaves them random.
        image: File of an image, which goes through the test pipeline of the config.
        category: Name or index of the class; by default the one that the model predicts.
        level: Which of the backbone's maps to look at, from 1; by default the last one in which
            something speaks for the class.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ModuleNotFoundError: If grad-cam is not installed.
        ValueError: If an argument is not what it should be, or a detector detects nothing and no
            class is named.
    """
    cfg = read_model_config(config)
    model = get_model(cfg, checkpoint)
    prepared = prepare_image(cfg, model, image)
    with torch.no_grad():
        levels = range(1, len(model.backbone(prepared.inputs)) + 1)
    if level is not None and level not in levels:
        raise ValueError(f'level must be from 1 to {len(levels)}, got {level}')
    predicted = ClassScores(model, prepared).predict()
    classes = model.dataset_meta.get('classes') or [f'class {i}' for i in range(len(predicted))]
    if category is None:
        if not predicted.any():
            raise ValueError(f'{config} detects nothing in {image}; name a class')
        index = int(predicted.argmax())
    else:
        index = _class_index(category, classes)
    reasons = []
    for number in reversed(levels) if level is None else [level]:
        try:
            heat = class_activation(ClassScores(model, prepared, number), index)
            break
        except ValueError as error:
            reasons.append(error)
    else:
        raise reasons[0]
    share = f'{float(predicted[index]):.0%}' + ' of the pixels' * hasattr(model, 'decode_head')
    what = f'{classes[index]}: {share}\nby map {number} of the backbone'
    return draw_activation(name_network(config, checkpoint), prepared.pixels, heat, what)


def _class_index(category: str, classes: list[str]) -> int:
    if category in classes:
        return list(classes).index(category)
    if category.isdecimal() and int(category) < len(classes):
        return int(category)
    raise ValueError(
        f'category must be the name of a class or a number below {len(classes)}, got {category!r}'
    )
