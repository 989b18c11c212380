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
# ImageNet's training archive holds an archive per class.
UNPACK_CLASSES = (
    '(cd {folder} && for t in *.tar; do '
    'mkdir -p "${{t%.tar}}" && tar -xf "$t" -C "${{t%.tar}}" && rm "$t"; done)'
)
# The commands for the published data sets. COCO's and Cityscapes' archives lie in the folder,
# where the libraries' scripts put them.
COMMANDS = {
    'coco': {
        'images': 'unzip -qo {root}/{part}.zip -d {root}',
        'annotations': 'unzip -qo {root}/annotations_trainval2017.zip -d {root}',
    },
    'cityscapes': {
        'images': 'unzip -qo {root}/leftImg8bit_trainvaltest.zip -d {root}',
        'annotations': 'mim run {mmdet} cityscapes {root} --out-dir {root}/annotations',
        'labels': 'CITYSCAPES_DATASET={root} csCreateTrainIdLabelImgs',
        'ground_truth': 'unzip -qo {root}/gtFine_trainvaltest.zip -d {root}',
    },
    'imagenet': {
        'images': 'mkdir -p {folder} && tar -xf ILSVRC2012_img_{part}.tar -C {folder}',
        'annotations': 'mkdir -p {root}/meta && tar -xf caffe_ilsvrc12.tar.gz -C {root}/meta',
    },
}


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

    Args:
        kind: A key of ``COMMANDS``.
        root: Folder of the data set.
        part: A part, such as 'train2017'.
    """
    # Under the name mmdet the fork's mim may find a transitional distribution without scripts.
    fork = any(metadata.distributions(name='onedl-mmdetection'))
    names = {'root': quote(root), 'folder': quote(root / part), 'part': part}
    names['mmdet'] = 'mmdetection' if fork else 'mmdet'
    commands = dict(COMMANDS[kind])
    if (kind, part) == ('imagenet', 'train'):
        commands['images'] += f' && {UNPACK_CLASSES}'
    return FixCommands(**{key: text.format(**names) for key, text in commands.items()})


def demo_fix(folder: Path, settings: dict) -> FixCommands:
    """Return the command that makes the demo data again with its settings."""
    # Without --overwrite an equal data set is left alone, damaged or not.
    command = f'python -m contnet_mm make_demo_data --out {quote(folder)} --overwrite'
    for name in DEMO_OPTIONS:
        value = settings.get(name)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            command += f' --{name.replace("_", "-")} {" ".join(map(str, values))}'
    return FixCommands(command, command, command, command)


def find_origin(
    kind: str | None, root: Path, part: str, image_dir: Path, labels: Path | None
) -> tuple[FixCommands, int | None]:
    """Return the commands of a part and its number of images, None if that is not known.

    Args:
        kind: The published data set that it belongs to, if any, unless it is demo data.
        root: Folder of the data set.
        part: A part, such as 'train2017'.
        image_dir: Folder of the images.
        labels: File of the annotations or folder of the labels, if any.
    """
    demo = find_demo(root)
    if demo:
        return demo[0], demo[1].get(part)
    if kind:
        return published_fix(kind, root, part), NUM_IMAGES[kind].get(part)
    images, source = quote(image_dir), quote(labels or image_dir)
    return FixCommands(
        images=f'fetch them again from where {images} came from',
        annotations=f'fetch or export {source} again from where it came from',
        labels=f'export the labels in {source} again',
        ground_truth=f'fetch or export the labels of {images} again',
    ), None


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


def quote(path: Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))
