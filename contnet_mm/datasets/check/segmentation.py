"""Checks of images with label images beside them."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from .files import (
    Examined,
    Progress,
    colour_notes,
    examine,
    file_findings,
    list_files,
    read_list,
)
from .findings import Finding, found
from .parts import SegmentationPart

# Cityscapes counts its labels to 33; 19 of them are trained on, under numbers of their own.
LAST_LABEL_ID = 33
LABEL_MODES = ('1', 'L', 'P', 'I', 'I;16')


def check_segmentation(
    part: SegmentationPart, every: bool, progress: Progress
) -> Iterator[Finding]:
    """Yields what is wrong with a part.

    Args:
        part: What is expected.
        every: Whether to open every image, not a sample.
        progress: Shows how far it is.
    """
    layout = {part.image_dir: part.mending.images, part.label_dir: part.mending.ground_truth}
    for folder, mend in layout.items():
        if not folder.is_dir():
            yield from found(part.name, 'layout', 'folder is missing', mend, [folder])
    images, labels = list_files(part.image_dir), list_files(part.label_dir)
    stems = yield from _list_stems(part, images)
    if part.num_images is not None and len(stems) != part.num_images:
        what = f'{len(stems)} images are in {part.image_dir}, {part.num_images} are expected'
        yield Finding(part.name, 'count', what, part.mending.images)
    yield from _check_pairs(part, stems, images, labels)
    both = [
        stem
        for stem in stems
        if stem + part.image_suffix in images and stem + part.label_suffix in labels
    ]
    names = [stem + part.image_suffix for stem in both]
    text = f'{part.name}: images'
    pictures = examine(part.image_dir, images, names, every, progress, text)
    yield from file_findings(part.name, 'images', pictures, part.mending.images)
    yield from colour_notes(part.name, pictures)
    names = [stem + part.label_suffix for stem in both]
    text = f'{part.name}: labels'
    maps = examine(part.label_dir, labels, names, every, progress, text, values=True)
    yield from file_findings(part.name, 'label images', maps, part.mending.labels)
    yield from _check_labels(part, maps)
    yield from _check_sizes(part, pictures, maps)


def _list_stems(
    part: SegmentationPart, images: dict[str, int]
) -> Generator[Finding, None, list[str]]:
    """Returns the names without suffix of the images that are read."""
    end = len(part.image_suffix)
    if part.ann_file is None:
        return [name[:-end] for name in images if name.endswith(part.image_suffix)]
    mend = part.mending.annotations
    lines = yield from read_list(part.name, 'list of names', part.ann_file, mend)
    stems = [line.strip() for line in lines if line.strip()]
    missing = [stem for stem in stems if stem + part.image_suffix not in images]
    what = 'listed images are missing'
    yield from found(part.name, 'missing-image', what, part.mending.images, missing)
    return stems


def _check_pairs(
    part: SegmentationPart, stems: list[str], images: dict[str, int], labels: dict[str, int]
) -> Iterator[Finding]:
    missing = [f'{s}{part.label_suffix}' for s in stems if s + part.label_suffix not in labels]
    what = f'images have no label image in {part.label_dir}'
    yield from found(part.name, 'missing-label', what, part.mending.labels, missing)
    end = len(part.label_suffix)
    spare = [
        name
        for name in labels
        if name.endswith(part.label_suffix) and name[:-end] + part.image_suffix not in images
    ]
    what = 'label images have no image'
    yield from found(part.name, 'missing-image', what, part.mending.images, spare)


def _check_labels(part: SegmentationPart, maps: Examined) -> Iterator[Finding]:
    mend = part.mending.labels
    colours = [f'{n}: {m.mode}' for n, m in maps.images.items() if m.mode not in LABEL_MODES]
    what = 'label images are pictures in colour, not one number per pixel'
    yield from found(part.name, 'label-mode', what, mend, colours)
    if part.num_classes is None:
        what = 'label values are not checked: the data set names no classes'
        yield Finding(part.name, 'label-values', what, note=True)
        return
    allowed = {*range(part.num_classes), part.ignored}
    strange = {
        name: sorted(image.values - allowed)
        for name, image in maps.images.items()
        if image.mode in LABEL_MODES and image.values - allowed
    }
    present = {value for values in strange.values() for value in values}
    what = (
        f'label images hold values other than 0 to {part.num_classes - 1} and {part.ignored} '
        f'({", ".join(map(str, sorted(present)))})'
    )
    if present and present <= set(range(LAST_LABEL_ID + 1)):
        if part.label_suffix.endswith('labelTrainIds.png'):
            what += ': they hold labelIds where labelTrainIds belong'
        elif part.label_suffix.endswith('labelIds.png'):
            what += ': labelTrainIds are to be read'
            mend = f"say seg_map_suffix='_gtFine_labelTrainIds.png'; they are made by: {mend}"
    examples = [f'{name}: {values}' for name, values in strange.items()]
    yield from found(part.name, 'label-values', what, mend, examples)


def _check_sizes(part: SegmentationPart, pictures: Examined, maps: Examined) -> Iterator[Finding]:
    wrong = []
    end = len(part.image_suffix)
    for name, image in pictures.images.items():
        label = maps.images.get(name[:-end] + part.label_suffix)
        if label is not None and label.size != image.size:
            wrong.append(f'{name}: {image.size}, its labels {label.size}')
    what = 'images and their labels differ in height and width'
    yield from found(part.name, 'size', what, part.mending.labels, wrong)
