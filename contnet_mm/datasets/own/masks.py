"""Reading images with label images, one number or colour per pixel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from contnet_mm.datasets.check.files import list_files
from contnet_mm.datasets.check.issues import Report
from contnet_mm.datasets.check.parts import IMAGE_SUFFIXES

from .data import UNDIVIDED, OwnData, Part, Sample, read_lines, role_of

# Folders of images and of label images, as MMSegmentation, Cityscapes, ADE20K, Pascal VOC and
# labelling tools name them.
IMAGES = ('leftImg8bit', 'images', 'image', 'imgs', 'img', 'img_dir', 'JPEGImages')
LABELS = ('gtFine', 'masks', 'mask', 'labels', 'label', 'ann_dir', 'annotations', 'gt')
LABELS = (*LABELS, 'SegmentationClass')
NAMES = ('classes.txt', 'labels.txt')
COLOURS = 'labelmap.txt'
# What Cityscapes calls its label images; the first that is there is read.
CITYSCAPES = ('_gtFine_labelTrainIds', '_gtFine_labelIds')
IGNORED = 255
NUM_OPENED = 50  # label images that tell which values there are


def find(root: Path) -> bool:
    """Return whether a folder holds images and label images."""
    return bool(_places(root))


def read(root: Path, report: Report, classes: tuple[str, ...] | None = None) -> OwnData:
    """Read ``<images>/<part>/...`` with ``<labels>/<part>/...``, or ``<part>/<images>/...``.

    Args:
        root: The folder.
        report: Gets what is wrong.
        classes: Names, in the order of their labels; None: those in the data.

    Raises:
        ValueError: If nothing names the classes.
    """
    parts = {}
    for name, (images, labels) in _places(root).items():
        samples, is_whole = _pair(images, labels, report)
        parts[name] = Part(name, samples, images if is_whole else None, images)
    parts = _parts_by_lists(root, parts)
    names, colours = _names(root)
    labels = [one.label_file for part in parts.values() for one in part.samples]
    opened = labels[:: max(1, len(labels) // NUM_OPENED)]
    values = sorted({value for path in opened for value in _values(path)}, key=str)
    classes = classes or names or _cityscapes(labels)
    if classes is None:
        given = ', '.join(map(str, values[:20]))
        raise ValueError(
            f'nothing names the classes in {root}: the label images hold {given}. Name them in '
            f'the order of their labels by --classes, or one a line in {root / NAMES[0]}'
        )
    mapping = None
    if colours and any(isinstance(value, tuple) for value in values):
        mapping = {colour: label for label, colour in enumerate(colours)}
    elif len(classes) == 2 and set(values) == {0, IGNORED}:
        mapping = {0: 0, IGNORED: 1}  # what is black and white to see
    return OwnData(
        'images and label images', tuple(classes), parts, report, tuple(colours or ()), mapping
    )


def convert(path: Path, mapping: dict) -> Image.Image:
    """Return a label image with labels for its values or colours.

    Pixels of any other value become ``IGNORED``.
    """
    with Image.open(path) as image:
        by_colour = any(isinstance(value, tuple) for value in mapping)
        pixels = np.asarray(image.convert('RGB') if by_colour else image)
    labels = np.full(pixels.shape[:2], IGNORED, np.uint8)
    for value, label in mapping.items():
        same = pixels == np.array(value, pixels.dtype)
        labels[same.all(axis=-1) if by_colour else same] = label
    return Image.fromarray(labels)


def _places(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and of labels by the names of the parts."""
    pair = _folders(root)
    if pair:
        images, labels = pair
        names = [path.name for path in sorted(images.iterdir()) if path.is_dir()]
        parts = {n: (images / n, labels / n) for n in names if role_of(n) and (labels / n).is_dir()}
        return parts or {UNDIVIDED: pair}
    inside = {path.name: _folders(path) for path in sorted(root.iterdir()) if role_of(path.name)}
    return {name: pair for name, pair in inside.items() if pair}


def _folders(root: Path) -> tuple[Path, Path] | None:
    found = [
        next((root / name for name in names if (root / name).is_dir()), None)
        for names in (IMAGES, LABELS)
    ]
    return tuple(found) if all(found) else None


def _pair(images: Path, labels: Path, report: Report) -> tuple[tuple[Sample, ...], bool]:
    """Return the images that have a label image, and whether these are all files there."""
    suffixes = [name for name in list_files(labels) if name.lower().endswith('.png')]
    by_stem: dict[str, str] = {}
    for ending in (*reversed(CITYSCAPES), None):
        for name in suffixes:
            stem = name.removesuffix(PurePosixPath(name).suffix)
            if ending is None and '_gtFine_' not in stem:
                by_stem[stem] = name
            elif ending is not None and stem.endswith(ending):
                by_stem[stem.removesuffix(ending)] = name
    samples, missing, used = [], [], set()
    for name in list_files(images):
        if not name.lower().endswith(IMAGE_SUFFIXES):
            continue
        stem = name.removesuffix(PurePosixPath(name).suffix).removesuffix('_leftImg8bit')
        if stem in by_stem:
            used.add(stem)
            samples.append(Sample(images / name, label_file=labels / by_stem[stem]))
        else:
            missing.append(str(images / name))
    fix = f'export their labels as PNG into {labels}; --repair leaves the images out'
    report.add('missing-label', 'images have no label image', missing, fix)
    spare = [str(labels / name) for stem, name in by_stem.items() if stem not in used]
    report.add('missing-image', 'label images have no image', spare)
    return tuple(samples), not missing and not spare


def _parts_by_lists(root: Path, parts: dict[str, Part]) -> dict[str, Part]:
    """Divide what is in no folders of parts by the lists of Pascal VOC, where there are some."""
    lists = [p for p in sorted(root.glob('ImageSets/Segmentation/*.txt')) if role_of(p.stem)]
    if [*parts] != [UNDIVIDED] or not lists:
        return parts
    samples = {sample.image.stem: sample for sample in parts[UNDIVIDED].samples}
    folder = parts[UNDIVIDED].image_dir
    divided = {}
    for path in lists:
        stems = [line.split()[0] for line in read_lines(path) if line.strip()]
        some = tuple(samples[stem] for stem in stems if stem in samples)
        divided[path.stem] = Part(path.stem, some, None, folder)
    return divided


def _names(root: Path) -> tuple[tuple[str, ...] | None, list[tuple] | None]:
    """Return the names of the classes and their colours, as far as files tell them."""
    path = root / COLOURS
    if path.is_file():
        lines = [line.split(':') for line in read_lines(path)]
        lines = [line for line in lines if line[0].strip() and line[0][0] != '#']
        try:
            colours = [tuple(int(value) for value in line[1].split(',')) for line in lines]
        except (ValueError, IndexError) as error:
            raise ValueError(f'{path} must hold lines such as cat:255,0,0::') from error
        return tuple(line[0].strip() for line in lines), colours
    for name in NAMES:
        if (root / name).is_file():
            lines = read_lines(root / name)
            return tuple(line.strip() for line in lines if line.strip()), None
    return None, None


def _cityscapes(labels: list[Path]) -> tuple[str, ...] | None:
    """Return the names of Cityscapes' own classes where the label images are called as its own."""
    if not labels or not all(path.stem.endswith(CITYSCAPES[0]) for path in labels):
        return None
    from mmseg.utils import cityscapes_classes

    return tuple(cityscapes_classes())


def _values(path: Path) -> set:
    """Return the values of a label image that count: numbers, or the commonest colours."""
    try:
        with Image.open(path) as image:
            if image.mode in ('1', 'L', 'P', 'I', 'I;16'):
                pixels = np.asarray(image)
                return {int(value) for value in np.unique(pixels.astype(int))}
            colours = Counter({c: n for n, c in image.convert('RGB').getcolors(1 << 24) or ()})
            return {colour for colour, _ in colours.most_common(20)}
    except Exception:  # damage can make a decoder fail in any way; the check of images reports it
        return set()
