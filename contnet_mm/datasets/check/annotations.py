"""Reading a COCO file, and checks of its entries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .fixes import quote
from .issues import Report

Entries = dict[str, list[dict]]
KEY, NUMBER = int | str, int | float
LARGEST = 1e15  # no honest number is larger; NaN and infinity are not smaller either
# The fields that each list of the file must have, and their types.
FIELDS = {
    'images': {'id': KEY, 'file_name': str, 'height': NUMBER, 'width': NUMBER},
    'categories': {'id': KEY, 'name': str},
    'annotations': {'id': KEY, 'image_id': KEY, 'category_id': KEY, 'bbox': list, 'area': NUMBER},
}
UNIQUE = ('id', 'file_name', 'name')
# Boxes are rounded: one may stick out by a pixel.
SLACK = 1
# COCO's own annotations hold a few of these; more than one in a thousand is a fault.
TOLERATED = ('empty-box', 'outside-box', 'mask')
TOLERATED_SHARE = 1e-3
FAULTS = {
    'missing-entry': 'annotations point at images that are not listed',
    'category-id': 'annotations have a category id that no category has',
    'empty-box': 'annotations have an empty box or area: they are left out in silence',
    'outside-box': 'boxes lie outside their images, wholly or in part',
    'mask': 'annotations have no mask, or one that does not fit',
}


def read_coco_file(report: Report, path: Path, fix: str, labelled: bool) -> Entries:
    """Return the entries of a COCO file that have all ``FIELDS``.

    What is missing, incomplete or doubled is reported; no annotations at all only if ``labelled``.
    """
    content = read_json(report, path, fix)
    if content is None:  # which is reported
        return {key: [] for key in FIELDS}
    return select_complete(report, content, path, fix, labelled)


def select_complete(
    report: Report, content: object, path: Path, fix: str, labelled: bool
) -> Entries:
    """Return the entries of a COCO file's content that have all ``FIELDS``; report the others."""
    content = content if isinstance(content, dict) else {}
    given = {key: content[key] if isinstance(content.get(key), list) else [] for key in FIELDS}
    absent = [key for key, entries in given.items() if not entries]
    if not labelled:
        absent = [key for key in absent if key != 'annotations']
    report.add('fields', f'lists are missing or empty in {path}', absent, fix)
    complete: Entries = {key: [] for key in FIELDS}
    for key, fields in FIELDS.items():
        wrong: list[str] = []
        for entry in given[key]:
            if _is_complete(entry, fields):
                complete[key].append(entry)
            else:
                wrong.append(_describe(entry, fields))
        what = f'{key} lack one of {", ".join(fields)}, or it is of the wrong type'
        report.add('fields', what, wrong, fix)
        for field in [field for field in UNIQUE if field in fields]:
            counts = Counter(entry[field] for entry in complete[key])
            doubled = [f'{field} {value}' for value, count in counts.items() if count > 1]
            report.add('doubled', f'{key} share their {field}', doubled, fix)
    return complete


def check_annotations(report: Report, content: Entries, fix: str, masks: bool) -> None:
    """Check annotations against their images and categories; their masks only if ``masks``."""
    annotations = content['annotations']
    images = {image['id']: image for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    faulty: dict[str, list[str]] = {check: [] for check in FAULTS}
    for annotation in annotations:
        image = images.get(annotation['image_id'])
        name = f'{image["file_name"]}: ' if image else ''
        for check in _faults(annotation, image, categories, masks):
            faulty[check].append(name + _describe(annotation, FIELDS['annotations']))
    for check, names in faulty.items():
        few = check in TOLERATED and len(names) <= len(annotations) * TOLERATED_SHARE
        report.add(check, FAULTS[check], names, '' if few else fix)


def read_json(report: Report, path: Path, fix: str) -> object:
    """Return the content of a file, or report why that is not possible and return None."""
    if not path.is_file():
        # Where MMDetection's converter writes when it is not told where.
        stray = path.parent.parent / path.name
        if stray.is_file():
            folder = quote(path.parent)
            fix = f'mkdir -p {folder} && mv {quote(stray)} {folder}'
        report.add('layout', 'annotation file is missing', [path], fix)
        return None
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = f'{path}: {path.stat().st_size} bytes, {error}'
        report.add('unreadable', 'annotation file is no JSON', [reason], fix)
        return None


def _is_complete(entry: object, fields: dict) -> bool:
    if not isinstance(entry, dict):
        return False
    box = entry.get('bbox') if 'bbox' in fields else [0] * 4
    return all(
        is_number(entry.get(field)) if kind is NUMBER else isinstance(entry.get(field), kind)
        for field, kind in fields.items()
    ) and (len(box) == 4 and all(map(is_number, box)))


def is_number(value: object) -> bool:
    """Tell whether a value is a number that one can reckon with."""
    is_one = isinstance(value, NUMBER) and not isinstance(value, bool)
    return is_one and -LARGEST < value < LARGEST


def _describe(entry: object, fields: dict) -> str:
    if not isinstance(entry, dict):
        return repr(entry)
    return ', '.join(f'{field} {entry.get(field)}' for field in fields)


def _faults(annotation: dict, image: dict | None, categories: set, masks: bool) -> Iterator[str]:
    if annotation['category_id'] not in categories:
        yield 'category-id'
    if image is None:
        yield 'missing-entry'
        return
    left, top, width, height = annotation['bbox']
    if width < 1 or height < 1 or annotation['area'] <= 0:
        yield 'empty-box'
    elif (
        min(left, top) < -SLACK
        or left + width > image['width'] + SLACK
        or top + height > image['height'] + SLACK
    ):
        yield 'outside-box'
    if masks and not _mask_fits(annotation.get('segmentation'), image):
        yield 'mask'


def _mask_fits(mask: object, image: dict) -> bool:
    if isinstance(mask, dict):
        size = [image['height'], image['width']]
        return mask.get('size') == size and _count_pixels(mask.get('counts')) == size[0] * size[1]
    # A polygon has three corners at least; MMDetection leaves out any other.
    return isinstance(mask, list) and any(
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(map(is_number, polygon))
        for polygon in mask
    )


def _count_pixels(counts: object) -> int | None:
    """Return the pixels of run lengths as COCO writes them, a list or text; None of no such.

    Other lengths than those of the image make pycocotools write behind the end of the mask.
    """
    runs: list[int] = []
    if isinstance(counts, list):
        runs = [run if type(run) is int else -1 for run in counts]
    elif isinstance(counts, str):
        run = shift = 0
        for letter in counts:
            bits = ord(letter) - 48
            if not 0 <= bits < 64:
                return None
            run |= (bits & 31) << shift
            shift += 5
            if bits & 32:  # goes on
                continue
            if bits & 16:
                run -= 1 << shift
            # From the third on they are differences to the one before the last.
            runs.append(run + (runs[-2] if len(runs) > 2 else 0))
            run = shift = 0
        if shift:
            return None
    return sum(runs) if runs and min(runs) >= 0 else None
