"""The commands that bring a data set in order, by where it came from."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DEMO_OPTIONS = ('num_train', 'num_val', 'size', 'digits', 'digit_height', 'seed')


@dataclass(frozen=True)
class Mending:
    """Commands of one part.

    Args:
        images: Brings images.
        annotations: Brings or makes the annotation file.
        labels: Makes the label images.
        ground_truth: Brings polygons and instance maps.
    """

    images: str
    annotations: str
    labels: str = ''
    ground_truth: str = ''


def coco_mending(root: Path, images: str) -> Mending:
    """Unpacks COCO's archives, by their published names, where MMDetection's script puts them.

    Args:
        root: Folder of the data set.
        images: Folder and archive of the images, such as 'train2017'.
    """
    folder = _quote(root)
    return Mending(
        images=f'unzip -qo {folder}/{images}.zip -d {folder}',
        annotations=f'unzip -qo {folder}/annotations_trainval2017.zip -d {folder}',
    )


def cityscapes_mending(root: Path) -> Mending:
    """Unpacks Cityscapes' archives, which lie in the folder, and converts by its scripts."""
    folder = _quote(root)
    labels = f'CITYSCAPES_DATASET={folder} csCreateTrainIdLabelImgs'
    convert = f'mim run {mmdet_for_mim()} cityscapes {folder} --out-dir {folder}/annotations'
    return Mending(
        images=f'unzip -qo {folder}/leftImg8bit_trainvaltest.zip -d {folder}',
        annotations=convert,
        labels=labels,
        ground_truth=f'unzip -qo {folder}/gtFine_trainvaltest.zip -d {folder}',
    )


def imagenet_mending(root: Path, part: str) -> Mending:
    """Unpacks ImageNet's archives; the training one holds an archive per class."""
    folder = _quote(root / part)
    images = f'mkdir -p {folder} && tar -xf ILSVRC2012_img_{part}.tar -C {folder}'
    if part == 'train':
        images += f' && {unpack_classes(root / part)}'
    lists = _quote(root / 'meta')
    return Mending(
        images=images,
        annotations=f'mkdir -p {lists} && tar -xf caffe_ilsvrc12.tar.gz -C {lists}',
    )


def unpack_classes(folder: Path) -> str:
    """Returns the command that unpacks an archive per class into a folder each."""
    return (
        f'(cd {_quote(folder)} && for t in *.tar; do '
        'mkdir -p "${t%.tar}" && tar -xf "$t" -C "${t%.tar}" && rm "$t"; done)'
    )


def demo_mending(folder: Path, settings: dict) -> Mending:
    """Makes the demo data again with its settings."""
    values = {name: settings.get(name) for name in DEMO_OPTIONS}
    options = ''.join(
        f' --{name.replace("_", "-")} ' + ' '.join(map(str, _as_list(value)))
        for name, value in values.items()
        if value is not None
    )
    # Without --overwrite an equal data set is left alone, damaged or not.
    command = f'python -m contnet_mm make_demo_data --out {_quote(folder)}{options} --overwrite'
    return Mending(command, command, command, command)


def own_mending(images: Path, annotations: Path | None) -> Mending:
    """Stands in where the origin of the data is not known."""
    source = annotations or images
    return Mending(
        images=f'fetch them again from where {_quote(images)} came from',
        annotations=f'fetch or export {_quote(source)} again from where it came from',
        labels=f'export the labels in {_quote(source)} again',
        ground_truth=f'fetch or export the labels of {_quote(images)} again',
    )


def demo_settings(root: Path) -> tuple[Path, dict] | None:
    """Finds the settings of the demo data that a folder is part of.

    Args:
        root: Folder of one layout, such as data/demo/coco.

    Returns:
        The demo's folder and its settings; None if the folder is no part of one.
    """
    for folder in (root, root.parent):
        try:
            settings = json.loads((folder / 'settings.json').read_text())
        except (OSError, ValueError):
            continue
        if isinstance(settings, dict) and settings.get('generator') == 'contnet_mm.demo':
            return folder, settings
    return None


def mmdet_for_mim() -> str:
    """Returns the name by which ``mim run`` finds the scripts of MMDetection.

    Under the name mmdet the fork's mim may find a transitional distribution without scripts.
    """
    try:
        metadata.version('onedl-mmdetection')
    except metadata.PackageNotFoundError:
        return 'mmdet'
    return 'mmdetection'


def _as_list(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _quote(path: Path) -> str:
    return shlex.quote(str(path))
