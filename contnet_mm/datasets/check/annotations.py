"""Checks of the annotations in a COCO file, one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .files import Progress
from .findings import Finding, found
from .parts import DetectionPart

Fields = dict[str, tuple[type, ...]]
KEY, NUMBER = (int, str), (int, float)
FIELDS: Fields = {
    'id': KEY,
    'image_id': KEY,
    'category_id': KEY,
    'bbox': (list,),
    'area': NUMBER,
}
# COCO's own annotations hold a few of these; more than one in a thousand is a fault.
TOLERATED_SHARE = 1e-3
TOLERATED = ('empty-box', 'outside-box', 'mask')
# Boxes are rounded: one may stick out by a pixel.
SLACK = 1
WHAT = {
    'fields': f'annotations lack one of {", ".join(FIELDS)}, or it is of the wrong kind',
    'missing-entry': 'annotations point at images that are not listed',
    'category-id': 'annotations have a category id that no category has',
    'empty-box': 'annotations have an empty box or area: they are left out in silence',
    'outside-box': 'boxes lie outside their images, wholly or in part',
    'mask': 'annotations have no mask, or one that does not fit',
}


def check_annotations(
    part: DetectionPart, content: dict[str, list], progress: Progress
) -> Iterator[Finding]:
    """Yields what is wrong with annotations.

    Args:
        part: What is expected.
        content: The lists 'images', 'categories' and 'annotations' of the file; the entries of
            the first two have all their fields.
        progress: Shows how far it is.
    """
    annotations = content['annotations']
    entries = {image['id']: image for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    wrong: dict[str, list[str]] = {check: [] for check in WHAT}
    for annotation in progress(annotations, f'{part.name}: annotations'):
        for check in _faults(annotation, entries, categories, part.masks):
            wrong[check].append(_describe(annotation))
    for check, names in wrong.items():
        few = check in TOLERATED and len(names) <= len(annotations) * TOLERATED_SHARE
        mend = '' if few else part.mending.annotations
        yield from found(part.name, check, WHAT[check], mend, names, note=few)
    counts = Counter(a['id'] for a in annotations if has_fields(a, FIELDS))
    doubled = [f'id {key}' for key, count in counts.items() if count > 1]
    what = 'annotations share their id'
    yield from found(part.name, 'doubled', what, part.mending.annotations, doubled)


def has_fields(entry: object, fields: Fields) -> bool:
    """Tells whether an entry of a JSON file has all fields, each of its kind."""
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), kinds) for key, kinds in fields.items()
    )


def _faults(
    annotation: dict, images: dict[object, dict], categories: set, masks: bool
) -> Iterator[str]:
    if not (has_fields(annotation, FIELDS) and _is_box(annotation['bbox'])):
        yield 'fields'
        return
    if annotation['category_id'] not in categories:
        yield 'category-id'
    image = images.get(annotation['image_id'])
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


def _is_box(box: list) -> bool:
    return len(box) == 4 and all(isinstance(value, NUMBER) for value in box)


def _mask_fits(mask: object, image: dict) -> bool:
    if isinstance(mask, dict):  # run lengths
        size = [image['height'], image['width']]
        return mask.get('size') == size and isinstance(mask.get('counts'), str | list)
    # A polygon has three corners at least; MMDetection leaves out any other.
    return isinstance(mask, list) and any(
        isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        for polygon in mask
    )


def _describe(annotation: object) -> str:
    if not isinstance(annotation, dict):
        return repr(annotation)
    return f'annotation {annotation.get("id")} of image {annotation.get("image_id")}: ' + (
        f'category {annotation.get("category_id")}, box {annotation.get("bbox")}, '
        f'area {annotation.get("area")}'
    )
