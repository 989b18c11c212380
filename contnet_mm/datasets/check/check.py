"""Checks all parts of a data set."""

from __future__ import annotations

from collections.abc import Sequence

from .classification import ClassificationPart, class_folders
from .issues import DatasetIssue, Progress, Report, no_progress
from .parts import Part


def check_parts(
    parts: Sequence[Part], all_images: bool = False, progress: Progress = no_progress
) -> list[DatasetIssue]:
    """Check parts of a data set on disk.

    Damage to one file hides no other: all checks run that have something to read.

    Args:
        parts: What is expected, as ``parts_of_folder`` or ``parts_of_config`` give it.
        all_images: Whether to open every image, not a sample of each part.
        progress: Shows how far it is; given what is gone through and what it is called.

    Returns:
        What was found, notes included.
    """
    reports = [Report(part.name, all_images, progress) for part in parts]
    first, expected = '', set()
    for part, report in zip(parts, reports, strict=True):
        part.check(report)
        if isinstance(part, ClassificationPart) and part.ann_file is None:
            # Labels count sorted folders, so that parts with other folders have other labels.
            folders = set(class_folders(part.image_dir))
            if folders and expected:
                what = f'folders of classes are in one of {first} and {part.name} only: '
                what += 'labels differ'
                report.add('classes', what, sorted(folders ^ expected), part.fix.images)
            elif folders:
                first, expected = part.name, folders
    return [issue for report in reports for issue in report.issues]
