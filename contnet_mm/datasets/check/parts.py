"""What all parts of a data set have in common, whatever their task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from .fixes import FixCommands
from .issues import Report

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
    """

    name: str
    image_dir: Path
    fix: FixCommands
    ann_file: Path | None = None
    num_images: int | None = None

    @abstractmethod
    def check(self, report: Report) -> None:
        """Add all that is wrong on disk to a report."""
