"""Reading a folder of images per class."""

from __future__ import annotations

from pathlib import Path

from contnet_mm.datasets.check.files import list_files
from contnet_mm.datasets.check.issues import Report
from contnet_mm.datasets.check.parts import IMAGE_SUFFIXES

from .data import UNDIVIDED, OwnData, Part, Sample, role_of


def find(root: Path) -> bool:
    """Return whether a folder holds images in a folder per class."""
    return any(_has_images(folder) for folder in _places(root).values())


def read(root: Path, report: Report) -> OwnData:
    """Read ``<part>/<class>/...`` or ``<class>/...``.

    Args:
        root: The folder.
        report: Gets images that lie beside the folders of classes.
    """
    parts, classes = {}, set()
    for name, folder in _places(root).items():
        found = [one for one in list_files(folder) if one.lower().endswith(IMAGE_SUFFIXES)]
        loose = [f'{folder / one}' for one in found if '/' not in one]
        fix = 'move them into the folder of their class; --repair leaves them out'
        report.add('loose-image', 'images lie in no folder of a class', loose, fix)
        samples = tuple(Sample(folder / n, name=n.split('/')[0]) for n in found if '/' in n)
        here = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != '.'}
        parts[name] = Part(name, samples, folder, folder)
        classes |= here
    # MMPretrain counts the folders of each part by itself: where they differ, so would labels.
    same = all({s.name for s in part.samples} == classes for part in parts.values())
    if not same:
        parts = {n: Part(n, p.samples, None, p.image_dir) for n, p in parts.items()}
    return OwnData('a folder per class', tuple(sorted(classes)), parts, report)


def _places(root: Path) -> dict[str, Path]:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != '.')
    parts = {path.name: path for path in folders if role_of(path.name)}
    return parts or {UNDIVIDED: root}


def _has_images(folder: Path) -> bool:
    return any('/' in n and n.lower().endswith(IMAGE_SUFFIXES) for n in list_files(folder))
