"""What the data set classes of the three libraries read: files for it, and its config."""

from __future__ import annotations

import json
import os
from pathlib import Path

from contnet_mm.utils.files import write_file

from .coco import make_content
from .data import OwnData, Part
from .masks import convert as convert_labels

# Ends of Cityscapes' names, which label images do not share.
CAMERA = '_leftImg8bit'


def write_parts(
    library: str, data: OwnData, chosen: dict[str, Part], folder: Path
) -> dict[str, dict]:
    """Write what has to be converted, and return what configs say of the parts.

    What a data set class reads as it is stays where it is.

    Args:
        library: Of the base config.
        data: What was read.
        chosen: The parts by 'train', 'val' and 'test'.
        folder: Where files go; it is made if one is written.

    Returns:
        By the same names: the type of the data set, its annotations and its folders.

    Raises:
        ValueError: If the names of the files are not such as MMSegmentation can read.
    """
    write = {'mmdet': _write_boxes, 'mmseg': _write_labels, 'mmpretrain': _write_names}[library]
    written: dict[int, dict] = {}  # by part: one may have two roles
    for role, part in chosen.items():
        if id(part) not in written:
            written[id(part)] = write(data, part, folder, role)
    return {role: written[id(part)] for role, part in chosen.items()}


def _write_boxes(data: OwnData, part: Part, folder: Path, role: str) -> dict:
    ann_file, image_dir = part.source, part.image_dir
    if ann_file is None:
        parents = {str(sample.image.parent) for sample in part.samples}
        image_dir = Path(os.path.commonpath(parents)) if parents else folder
        ann_file = folder / f'{role}.json'
        write_file(ann_file, json.dumps(make_content(part, data.classes, image_dir)))
    return dict(
        type='CocoDataset', ann_file=ann_file.as_posix(), data_prefix=dict(img=_dir(image_dir))
    )


def _write_labels(data: OwnData, part: Part, folder: Path, role: str) -> dict:
    names, suffixes, label_dirs = [], set(), set()
    for sample in part.samples:
        name = sample.image.relative_to(part.image_dir).as_posix()
        end = CAMERA if sample.image.stem.endswith(CAMERA) else ''
        end += sample.image.suffix
        names.append(name.removesuffix(end))
        label_dir = sample.label_file.parents[name.count('/')]
        label = sample.label_file.relative_to(label_dir).as_posix()
        suffixes.add((end, label.removeprefix(names[-1])))
        label_dirs.add(label_dir)
    if len(suffixes) > 1:
        some = ', '.join(sorted({f'*{image} with *{label}' for image, label in suffixes}))
        raise ValueError(
            f'{part.image_dir} holds {some}; MMSegmentation reads images of one ending: convert '
            'the others, for instance by `mogrify -format png`'
        )
    ((image_suffix, label_suffix),) = suffixes or {('.jpg', '.png')}
    label_dir = next(iter(label_dirs), folder)
    if data.values is not None:
        for sample, name in zip(part.samples, names, strict=True):
            path = folder / 'labels' / role / f'{name}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            convert_labels(sample.label_file, data.values).save(path)
        label_dir, label_suffix = folder / 'labels' / role, '.png'
    settings = dict(
        type='BaseSegDataset',
        data_prefix=dict(img_path=_dir(part.image_dir), seg_map_path=_dir(label_dir)),
        img_suffix=image_suffix,
        seg_map_suffix=label_suffix,
    )
    # Without a list all images of the folder are read.
    on_disk = sum(1 for _ in part.image_dir.rglob(f'*{image_suffix}')) if part.image_dir else 0
    if part.source is None or on_disk != len(names):
        ann_file = folder / f'{role}.txt'
        write_file(ann_file, ''.join(f'{name}\n' for name in names))
        settings['ann_file'] = ann_file.as_posix()
    return settings


def _write_names(data: OwnData, part: Part, folder: Path, role: str) -> dict:
    settings = dict(type='CustomDataset', data_prefix=_dir(part.image_dir))
    if part.source is None:
        labels = {name: label for label, name in enumerate(data.classes)}
        ann_file = folder / f'{role}.txt'
        pairs = (
            (sample.image.relative_to(part.image_dir).as_posix(), labels[sample.name])
            for sample in part.samples
        )
        write_file(ann_file, ''.join(f'{name} {label}\n' for name, label in pairs))
        settings['ann_file'] = ann_file.as_posix()
    return settings


def _dir(path: Path) -> str:
    return f'{path.as_posix()}/'
