"""Where a data set came from, and the commands that put it right."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

# Number of images in the parts of the published data sets.
NUM_IMAGES = {
    'coco': {'train2017': 118287, 'val2017': 5000},
    'cityscapes': {'train': 2975, 'val': 500},
    'imagenet': {'train': 1281167, 'val': 50000},
}
DEMO_OPTIONS = ('num_train', 'num_val', 'size', 'digits', 'digit_height', 'seed')


@dataclass(frozen=True)
class FixCommands:
    """Commands that put one part right, or words where its origin is not known.

    Args:
        images: Brings images.
        annotations: Brings or makes the annotation file.
        labels: Makes the label images.
        ground_truth: Brings polygons and instance maps.
    """

    images: str
    annotations: str
    labels: str = 'fetch or export the label images again'
    ground_truth: str = 'fetch or export the ground truth again'


def published_fix(kind: str, root: Path, part: str) -> FixCommands:
    """Return the commands that unpack or convert the archives of a published data set.

    COCO's and Cityscapes' archives lie in the folder, where the libraries' scripts put them.

    Args:
        kind: A key of ``NUM_IMAGES``.
        root: Folder of the data set.
        part: A part, such as 'train2017'.
    """
    folder = shlex.quote(str(root))
    if kind == 'coco':
        return FixCommands(
            images=f'unzip -qo {folder}/{part}.zip -d {folder}',
            annotations=f'unzip -qo {folder}/annotations_trainval2017.zip -d {folder}',
        )
    if kind == 'cityscapes':
        converter = f'mim run {mmdet_for_mim()} cityscapes {folder}'
        return FixCommands(
            images=f'unzip -qo {folder}/leftImg8bit_trainvaltest.zip -d {folder}',
            annotations=f'{converter} --out-dir {folder}/annotations',
            labels=f'CITYSCAPES_DATASET={folder} csCreateTrainIdLabelImgs',
            ground_truth=f'unzip -qo {folder}/gtFine_trainvaltest.zip -d {folder}',
        )
    folder, lists = shlex.quote(str(root / part)), shlex.quote(str(root / 'meta'))
    images = f'mkdir -p {folder} && tar -xf ILSVRC2012_img_{part}.tar -C {folder}'
    if part == 'train':
        images += f' && {unpack_classes(root / part)}'
    return FixCommands(images, f'mkdir -p {lists} && tar -xf caffe_ilsvrc12.tar.gz -C {lists}')


def unpack_classes(folder: Path) -> str:
    """Return the command that unpacks an archive per class into a folder each."""
    return (
        f'(cd {shlex.quote(str(folder))} && for t in *.tar; do '
        'mkdir -p "${t%.tar}" && tar -xf "$t" -C "${t%.tar}" && rm "$t"; done)'
    )


def demo_fix(folder: Path, settings: dict) -> FixCommands:
    """Return the command that makes the demo data again with its settings."""
    # Without --overwrite an equal data set is left alone, damaged or not.
    command = f'python -m contnet_mm make_demo_data --out {shlex.quote(str(folder))} --overwrite'
    for name in DEMO_OPTIONS:
        value = settings.get(name)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            command += f' --{name.replace("_", "-")} {" ".join(map(str, values))}'
    return FixCommands(command, command, command, command)


def own_fix(images: Path, labels: Path | None) -> FixCommands:
    """Return what to do where the origin of the data is not known."""
    folder, source = shlex.quote(str(images)), shlex.quote(str(labels or images))
    return FixCommands(
        images=f'fetch them again from where {folder} came from',
        annotations=f'fetch or export {source} again from where it came from',
        labels=f'export the labels in {source} again',
        ground_truth=f'fetch or export the labels of {folder} again',
    )


def find_origin(
    kind: str | None, root: Path, part: str, own: FixCommands
) -> tuple[FixCommands, int | None]:
    """Return the commands of a part and its number of images, None if that is not known.

    Args:
        kind: The published data set that it belongs to, if any, unless it is demo data.
        root: Folder of the data set.
        part: A part, such as 'train2017'.
        own: The commands for data of any other origin.
    """
    demo = find_demo(root)
    if demo:
        return demo[0], demo[1].get(part)
    if kind:
        return published_fix(kind, root, part), NUM_IMAGES[kind].get(part)
    return own, None


def find_demo(root: Path) -> tuple[FixCommands, dict[str, int]] | None:
    """Find the demo data that a folder is part of.

    Args:
        root: Folder of one layout, such as data/demo/coco, or the one above.

    Returns:
        Its commands and the number of images in its parts; None if the folder is no part of one.
    """
    for folder in (root, root.parent):
        try:
            settings = json.loads((folder / 'settings.json').read_text())
        except (OSError, ValueError):
            continue
        if isinstance(settings, dict) and settings.get('generator') == 'contnet_mm.demo':
            counts = {part: settings.get(f'num_{part}') for part in ('train', 'val')}
            return demo_fix(folder, settings), counts
    return None


def mmdet_for_mim() -> str:
    """Return the name by which ``mim run`` finds the scripts of MMDetection.

    Under the name mmdet the fork's mim may find a transitional distribution without scripts.
    """
    try:
        metadata.version('onedl-mmdetection')
    except metadata.PackageNotFoundError:
        return 'mmdet'
    return 'mmdetection'
