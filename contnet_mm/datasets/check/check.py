"""Checks all parts of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .classification import check_classification, class_folders
from .detection import check_detection
from .files import Progress, no_progress
from .findings import Finding, found
from .parts import ClassificationPart, DetectionPart, Part, SegmentationPart
from .segmentation import check_segmentation

CHECKS = {
    DetectionPart: check_detection,
    SegmentationPart: check_segmentation,
    ClassificationPart: check_classification,
}


def check_parts(
    parts: Sequence[Part], every: bool = False, progress: Progress = no_progress
) -> list[Finding]:
    """Checks parts of a data set on disk.

    Damage to one file hides no other: all checks run that have something to read.

    Args:
        parts: What is expected, as ``parts_of_folder`` or ``parts_of_config`` give it.
        every: Whether to open every image, not a sample of each part.
        progress: Shows how far it is; given what is gone through and what it is called.

    Returns:
        What was found, notes included.

    Raises:
        ImportError: If Pillow is missing.
    """
    findings = [finding for part in parts for finding in CHECKS[type(part)](part, every, progress)]
    return [*findings, *_compare_classes(parts)]


def _compare_classes(parts: Sequence[Part]) -> Iterator[Finding]:
    """Labels count sorted folders, so that parts with other folders have other labels."""
    folders = {
        part.name: (part, set(class_folders(part.image_dir)))
        for part in parts
        if isinstance(part, ClassificationPart) and part.ann_file is None
    }
    known = {name: (part, names) for name, (part, names) in folders.items() if names}
    if not known:
        return
    reference = next(iter(known))
    for name, (part, names) in known.items():
        differing = sorted(names ^ known[reference][1])
        what = f'folders of classes are in one of {reference} and {name} only: labels differ'
        yield from found(name, 'classes', what, part.mending.images, differing)
