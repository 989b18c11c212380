"""Parts of a data set, each read by a data loader, and their check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .duplicates import check_duplicates
from .fixes import FixCommands
from .issues import DatasetIssue, Report

# As MMPretrain's CustomDataset and ImageNet have them.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')


@dataclass(frozen=True, kw_only=True)
class Part(ABC):
    """What one data loader is expected to read.

    Args:
        name: The part, such as 'train'.
        image_dir: Folder that the names of the images start from.
        fix: The commands that put it right.
        ann_file: The file of annotations, labels or names; None if there is none.
        num_images: Number of images; None if not known.
        others: The annotations or lists of other parts whose images lie in the same folder.
        heads: How many classes the heads of the model predict, by their place in the config.
    """

    name: str
    image_dir: Path
    fix: FixCommands
    ann_file: Path | None = None
    num_images: int | None = None
    others: tuple[Path, ...] = ()
    heads: tuple[tuple[str, int], ...] = ()

    @abstractmethod
    def check(self, report: Report) -> None:
        """Add all that is wrong on disk to a report."""

    @abstractmethod
    def count_classes(self) -> int | None:
        """Return the number of classes, None if it is not known."""

    def class_folders(self) -> list[str]:
        """Return the folders that name the classes, in the order of their labels, if they do."""
        return []


def check_parts(parts: Sequence[Part], all_images: bool = False) -> list[DatasetIssue]:
    """Check parts of a data set on disk; show a progress bar where somebody watches.

    Damage to one file hides no other: all checks run that have something to read.

    Args:
        parts: What is expected, as ``parts_of_folder`` or ``parts_of_config`` give it.
        all_images: Whether to open every image, not a sample of each part.

    Returns:
        What was found, notes included.
    """
    issues: list[DatasetIssue] = []
    first: Part | None = None
    heads: set[str] = set()  # of each one issue is enough
    images: dict[str, dict[Path, int]] = {}
    for part in parts:
        report = Report(part.name, all_images)
        part.check(report)
        heads |= _check_heads(report, part, heads)
        images[part.name] = report.images
        folders = part.class_folders()
        first = first or (part if folders else None)
        if first and folders:
            # Labels count sorted folders, so that parts with other folders have other labels.
            what = f'folders of classes are in one of {first.name} and {part.name} only: '
            differing = sorted({*folders} ^ {*first.class_folders()})
            report.add('classes', what + 'labels differ', differing, part.fix.images)
        issues += report.issues
    return issues + check_duplicates(images, all_images)


def _check_heads(report: Report, part: Part, known: set[str]) -> set[str]:
    """Report heads that predict another number of classes than the part has; return them."""
    count = part.count_classes()
    wrong = {
        path: number
        for path, number in part.heads
        if count is not None and number != count and path not in known
    }
    what = f'the model predicts another number of classes than the {count} of the data'
    settings = ' '.join(f'{path}={count}' for path in wrong)
    fix = f'give --cfg-options {settings}, or say so in the config'
    report.add('head-classes', what, (f'{path}={n}' for path, n in wrong.items()), fix)
    return {*wrong}
