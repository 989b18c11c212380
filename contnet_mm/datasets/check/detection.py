"""Checks of images with annotations in one COCO file."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

from .annotations import KEY, NUMBER, Fields, check_annotations, has_fields
from .files import Examined, Progress, colour_notes, examine, file_findings, list_files
from .findings import Finding, found
from .parts import IMAGE_SUFFIXES, DetectionPart

IMAGE_FIELDS: Fields = {'id': KEY, 'file_name': (str,), 'height': NUMBER, 'width': NUMBER}
CATEGORY_FIELDS: Fields = {'id': KEY, 'name': (str,)}
# Of 16 bits: Pillow's name for that differs between versions.
INSTANCE_MODES = ('I', 'I;16', 'I;16B')


def check_detection(part: DetectionPart, every: bool, progress: Progress) -> Iterator[Finding]:
    """Yields what is wrong with a part.

    Args:
        part: What is expected.
        every: Whether to open every image, not a sample.
        progress: Shows how far it is.
    """
    if not part.image_dir.is_dir():
        what = 'folder of images is missing'
        yield from found(part.name, 'layout', what, part.mending.images, [part.image_dir])
    files = list_files(part.image_dir)
    content = yield from _read(part)
    entries: dict[str, dict] = {}
    if content is not None:
        images = content['images']
        entries = {image['file_name']: image for image in images}
        yield from _check_categories(part, content['categories'])
        yield from _check_images(part, images)
        if part.image_dir.is_dir():
            yield from _check_pairs(part, entries, files)
        yield from check_annotations(part, content, progress)
    names = list(entries) or [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    examined = examine(part.image_dir, files, names, every, progress, f'{part.name}: images')
    yield from file_findings(part.name, 'images', examined, part.mending.images)
    yield from _check_sizes(part, entries, examined)
    yield from colour_notes(part.name, examined)
    if part.instance_maps:
        yield from _check_instance_maps(part, entries or dict.fromkeys(names, {}), every, progress)


def _read(part: DetectionPart) -> Generator[Finding, None, dict[str, list] | None]:
    """Returns the three lists of the annotation file, None if there are none to go on with.

    What is left in them has all the fields that the checks use, except for annotations.
    """
    path, mend = part.ann_file, part.mending.annotations
    metric = part.metric_ann_file
    if metric is not None and metric.resolve() != path.resolve():
        what = f'the evaluator reads {metric}, the data loader {path}'
        yield Finding(part.name, 'metric', what, 'name the same ann_file in both')
    if not path.is_file():
        # Where MMDetection's converter writes when it is not told where.
        stray = path.parent.parent / path.name
        if stray.is_file():
            folder = shlex.quote(str(path.parent))
            mend = f'mkdir -p {folder} && mv {shlex.quote(str(stray))} {folder}'
        yield from found(part.name, 'layout', 'annotation file is missing', mend, [path])
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        reason = f'{path}: {path.stat().st_size} bytes, {error}'
        yield from found(part.name, 'unreadable', 'annotation file is no JSON', mend, [reason])
        return None
    content = content if isinstance(content, dict) else {}
    wanted = ('images', 'categories', *(('annotations',) if part.labelled else ()))
    lists = {
        key: content[key] if isinstance(content.get(key), list) else []
        for key in ('images', 'categories', 'annotations')
    }
    absent = [key for key in wanted if not lists[key]]
    yield from found(part.name, 'fields', f'lists are missing or empty in {path}', mend, absent)
    for key, fields in (('images', IMAGE_FIELDS), ('categories', CATEGORY_FIELDS)):
        bad = [entry for entry in lists[key] if not has_fields(entry, fields)]
        what = f'{key} lack one of {", ".join(fields)}, or it is of the wrong kind'
        yield from found(part.name, 'fields', what, mend, bad)
        lists[key] = [entry for entry in lists[key] if has_fields(entry, fields)]
    return lists if lists['images'] else None


def _check_categories(part: DetectionPart, categories: list[dict]) -> Iterator[Finding]:
    again = part.mending.annotations
    for key in CATEGORY_FIELDS:
        doubled = _doubled(category[key] for category in categories)
        yield from found(part.name, 'doubled', f'categories share their {key}', again, doubled)
    if part.classes is None:
        what = f'class names are not checked: {part.classes_note}'
        yield Finding(part.name, 'classes', what, note=True)
        return
    names = [category['name'] for category in categories]
    mend = f"say metainfo=dict(classes={tuple(names)!r}) in the data set's config, or: {again}"
    # Labels count the categories of the file that are classes: one that is missing shifts others.
    absent = [name for name in part.classes if name not in names]
    what = f'classes are in no category of {part.ann_file}'
    yield from found(part.name, 'classes', what, mend, absent)
    inside = [name for name in names if name in part.classes]
    if not absent:
        pairs = zip(inside, part.classes, strict=False)
        wrong = [f'{have!r} where {want!r} is expected' for have, want in pairs if have != want]
        what = 'categories stand in another order than the classes'
        yield from found(part.name, 'class-order', what, mend, wrong)
    unread = [name for name in names if name not in part.classes]
    what = 'categories are no classes: their annotations are left out'
    yield from found(part.name, 'classes', what, '', unread, note=True)


def _check_images(part: DetectionPart, images: list[dict]) -> Iterator[Finding]:
    mend = part.mending.annotations
    for key in ('id', 'file_name'):
        doubled = _doubled(image[key] for image in images)
        yield from found(part.name, 'doubled', f'images share their {key}', mend, doubled)
    if part.num_images is not None and len(images) != part.num_images:
        what = f'{part.ann_file} lists {len(images)} images, {part.num_images} are expected'
        yield Finding(part.name, 'count', what, mend)


def _doubled(values: Iterator) -> list:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_pairs(
    part: DetectionPart, entries: dict[str, dict], files: dict[str, int]
) -> Iterator[Finding]:
    # A name may lead out of the folder and still be right.
    missing = [n for n in entries if n not in files and not (part.image_dir / n).is_file()]
    what = 'listed images are missing'
    yield from found(part.name, 'missing-image', what, part.mending.images, missing)
    spare = [n for n in files if n.lower().endswith(IMAGE_SUFFIXES) and n not in entries]
    # Only of a data set whose counts are known is it known that a folder holds one part.
    known = part.num_images is not None
    mend = f'{part.mending.annotations}; or move them away' if known else ''
    what = 'images are in no annotation'
    yield from found(part.name, 'unlisted-image', what, mend, spare, note=not known)


def _check_sizes(
    part: DetectionPart, entries: dict[str, dict], examined: Examined
) -> Iterator[Finding]:
    wrong = []
    for name, image in examined.images.items():
        entry = entries.get(name)
        if entry is not None and (entry['height'], entry['width']) != image.size:
            wrong.append(f'{name}: {image.size}, annotated {entry["height"], entry["width"]}')
    what = 'images have another height and width than their annotations'
    mend = f'{part.mending.images}; or: {part.mending.annotations}'
    yield from found(part.name, 'size', what, mend, wrong)


def instance_map(image: Path) -> Path:
    """Returns where MMDetection's Cityscapes evaluator looks for the instances of an image."""
    path = str(image).replace('leftImg8bit.png', 'gtFine_instanceIds.png')
    return Path(path.replace('leftImg8bit', 'gtFine'))


def _check_instance_maps(
    part: DetectionPart, entries: dict[str, dict], every: bool, progress: Progress
) -> Iterator[Finding]:
    mend = part.mending.ground_truth
    folder = instance_map(part.image_dir)
    files = list_files(folder)
    maps = {
        instance_map(part.image_dir / name).relative_to(folder).as_posix(): entry
        for name, entry in entries.items()
    }
    missing = [name for name in maps if name not in files]
    yield from found(part.name, 'missing-instances', 'instance maps are missing', mend, missing)
    text = f'{part.name}: instance maps'
    examined = examine(folder, files, list(maps), every, progress, text)
    yield from file_findings(part.name, 'instance maps', examined, mend)
    wrong = []
    for name, image in examined.images.items():
        size = (maps[name].get('height'), maps[name].get('width'))
        if image.mode not in INSTANCE_MODES:
            wrong.append(f'{name}: {image.mode}, not 16 bits')
        elif None not in size and size != image.size:
            wrong.append(f'{name}: {image.size}, annotated {size}')
    what = 'instance maps are of another kind or size'
    yield from found(part.name, 'instance-values', what, mend, wrong)
