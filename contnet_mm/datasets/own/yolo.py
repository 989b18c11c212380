"""Reading YOLO's text files: one per image, one line per object.

By hand: a line is split and multiplied by the size of its image. supervision and datumaro, which
also read data.yaml, bring 22 packages each, SciPy, Matplotlib and pandas among them.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from contnet_mm.datasets.check.files import is_file, list_files
from contnet_mm.datasets.check.issues import Report
from contnet_mm.datasets.check.parts import IMAGE_SUFFIXES
from contnet_mm.utils.errors import first_line

from .data import UNDIVIDED, Box, OwnData, Part, Sample, read_lines, role_of
from .images import measure

NAMES = ('classes.txt', 'obj.names')
FIX = 'write them anew as "class x y width height", shares of the image; --repair leaves them out'


def find(root: Path) -> bool:
    """Return whether a folder holds a YOLO data set: a YAML file with names, or a list of names."""
    return _yaml_file(root) is not None or (
        any((root / name).is_file() for name in NAMES) and (root / 'labels').is_dir()
    )


def read(root: Path, report: Report) -> OwnData:
    """Read YOLO's layout: data.yaml, or classes.txt, images/ and labels/.

    Args:
        root: The folder.
        report: Gets what is wrong.

    Raises:
        ValueError: If the YAML file cannot be read, or names no classes or no images.
    """
    path = _yaml_file(root)
    if path is None:
        names = next(root / name for name in NAMES if (root / name).is_file())
        classes = tuple(line.strip() for line in read_lines(names) if line.strip())
        folders = {p.name: p for p in sorted((root / 'images').glob('*/')) if role_of(p.name)}
        places = {name: [folder] for name, folder in folders.items()}
        places = places or {UNDIVIDED: [root / 'images']}
    else:
        content = _read_yaml(path)
        given = content['names']
        if isinstance(given, dict):
            given = [given[key] for key in sorted(given)]
        classes = tuple(map(str, given))
        places = _places(path, content)
    wrong: dict[str, list[str]] = {'fields': [], 'category-id': [], 'empty': []}
    parts = {}
    for name, paths in places.items():
        images = [image for place in paths for image in _list_images(place, path or root)]
        samples = (_read_sample(image, classes, wrong) for image in dict.fromkeys(images))
        parts[name] = Part(name, tuple(samples))
    report.add('fields', 'lines are no class and box or polygon', wrong['fields'], FIX)
    what = f'lines have a class that is none of the {len(classes)} names'
    fix = 'put the names right, or the lines; --repair leaves the lines out'
    report.add('category-id', what, wrong['category-id'], fix)
    report.add('background', 'images have no label file: no object is in them', wrong['empty'])
    has_masks = any(
        box.segmentation for part in parts.values() for one in part.samples for box in one.boxes
    )
    return OwnData('YOLO text', classes, parts, report, has_masks=has_masks)


def parse_line(line: str, size: tuple[int, int]) -> tuple[int, tuple, list]:
    """Return the class, box and polygons of a line.

    Args:
        line: ``class x y width height``, the centre and size of a box, or ``class x1 y1 x2 y2
            ...``, a polygon; each as a share of the image's width and height.
        size: Height and width of the image in pixels.

    Returns:
        The class, the box (left, top, width, height) in pixels, and the polygons, none of a box.

    Raises:
        ValueError: If it is no such line.
    """
    first, *rest = line.split()
    label, shares = int(first), [float(word) for word in rest]
    if label < 0 or not all(abs(share) < 1e6 for share in shares):
        raise ValueError(f'{line!r} holds a number that is out of range')
    height, width = size
    if len(shares) == 4:
        x, y, w, h = shares
        return label, ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height), []
    if len(shares) < 6 or len(shares) % 2:
        raise ValueError(f'{line!r} is neither four numbers nor a polygon')
    xs = [share * width for share in shares[::2]]
    ys = [share * height for share in shares[1::2]]
    polygon = [value for pair in zip(xs, ys, strict=True) for value in pair]
    left, top = min(xs), min(ys)
    return label, (left, top, max(xs) - left, max(ys) - top), [polygon]


def _yaml_file(root: Path) -> Path | None:
    """Return data.yaml, whatever is in it, or another YAML file that names classes."""
    for path in sorted([*root.glob('*.yaml'), *root.glob('*.yml')], key=lambda p: p.stem != 'data'):
        try:
            content = yaml.safe_load(path.read_text(encoding='utf-8'))
        except (yaml.YAMLError, ValueError, RecursionError):
            content = None
        if path.stem == 'data' or (isinstance(content, dict) and 'names' in content):
            return path
    return None


def _read_yaml(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} is no YAML: {first_line(error)}') from error
    names = content.get('names') if isinstance(content, dict) else None
    if not isinstance(names, list | dict) or not names:
        raise ValueError(f'{path} has no list of names, such as names: [cat, dog]')
    labels = [*names] if isinstance(names, dict) else []
    values = [*names.values()] if isinstance(names, dict) else names
    # Text of lists in lists could be without end.
    if not all(type(label) is int for label in labels) or not all(map(_is_word, values)):
        raise ValueError(
            f'{path}: names must be words, as in names: [cat, dog] or {{0: cat, 1: dog}}'
        )
    return content


def _is_word(value: object) -> bool:
    return isinstance(value, str | int | float)


def _places(path: Path, content: dict) -> dict[str, list[Path]]:
    """Return the folders and lists of images of each part that a YAML file names."""
    given = content.get('path') or ''
    if not _is_word(given):
        raise ValueError(f'{path}: path must be the name of a folder')
    top = path.parent / str(given)
    places = {}
    for name in ('train', 'val', 'valid', 'test'):
        given = content.get(name)
        if not given:
            continue
        words = given if isinstance(given, list) else [given]
        if not all(map(_is_word, words)):
            raise ValueError(f'{path}: {name} must be a folder, a file or a list of such')
        words = [str(word) for word in words]
        # Exports say ../train/images of a folder that lies beside the file.
        roots = (top, path.parent)
        tried = [
            [root / one for root in roots for one in (word, word.removeprefix('../'))]
            for word in words
        ]
        places[name] = [next((p for p in some if _exists(p)), some[0]) for some in tried]
        missing = [str(place)[:200] for place in places[name] if not _exists(place)]
        if missing:
            raise ValueError(f'{path} names {", ".join(missing)} for {name}, which does not exist')
    if not places:
        raise ValueError(f'{path} names no images: neither train, val nor test')
    return places


def _exists(path: Path) -> bool:
    return is_file(path) or os.path.isdir(path)


def _list_images(place: Path, source: Path) -> list[Path]:
    if place.is_dir():
        names = [name for name in list_files(place) if name.lower().endswith(IMAGE_SUFFIXES)]
        return [place / name for name in names]
    try:
        lines = [line.strip() for line in place.read_text(encoding='utf-8').splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'{source} names {place}, which cannot be read: {error}') from error
    return [place.parent / line for line in lines if line]


def _label_file(image: Path) -> Path:
    """Return the text file of an image: in the folder labels instead of images, else beside it."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == 'images':
            parts[index] = 'labels'
            break
    return Path(*parts).with_suffix('.txt')


def _read_sample(image: Path, classes: tuple[str, ...], wrong: dict[str, list[str]]) -> Sample:
    path, size = _label_file(image), measure(image)
    if not path.is_file():
        wrong['empty'].append(image.name)
        return Sample(image, (), size)
    boxes = []
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            label, bbox, polygons = parse_line(line, size)
        except ValueError:
            wrong['fields'].append(f'{path} line {number}: {line[:60]!r}')
            continue
        if label >= len(classes):
            wrong['category-id'].append(f'{path} line {number}: class {label}')
            continue
        boxes.append(Box(classes[label], bbox, polygons))
    return Sample(image, tuple(boxes), size)
