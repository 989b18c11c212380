"""Images that are there twice, byte by byte, in one part or in two."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from contnet_mm.utils.files import compute_sha256

from .annotations import TOLERATED_SHARE
from .files import SAMPLE
from .issues import DatasetIssue, Report

TAIL = 4096  # bytes; images of one size and kind begin alike, but do not end so


def check_duplicates(
    parts: Mapping[str, Mapping[Path, int]], all_images: bool
) -> list[DatasetIssue]:
    """Report images that two parts share, and images that one part has twice.

    Args:
        parts: Size in bytes of each image by its path, by the name of its part, such as 'train' or
            'val, test'; those that begin with one word, such as 'train2017', have one purpose.
        all_images: Whether to compare all images, not those as long as one of a sample.
    """
    files = {path: size for images in parts.values() for path, size in images.items()}
    chosen = {
        size
        for images in parts.values()
        for size in list(images.values())[:: 1 if all_images else max(1, len(images) // SAMPLE)]
    }
    twins = find_duplicates({path: size for path, size in files.items() if size in chosen})
    owners: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for name, images in parts.items():
        purpose = re.match(r'[a-z]*', name)[0]
        for path in images:
            same = owners[twins[path][0] if path in twins else path][purpose]
            if path not in same:
                same.append(path)
    leaks, shared, doubled = [], [], []
    for by_purpose in owners.values():
        first = [some[0] for some in by_purpose.values()]
        if len(by_purpose) > 1:
            text = ' and '.join(map(str, dict.fromkeys(first)))
            (leaks if 'train' in by_purpose else shared).append(text)
        doubled += [' and '.join(map(str, some)) for some in by_purpose.values() if len(some) > 1]
    report = Report('all', all_images)
    tested = sum(len(images) for name, images in parts.items() if not name.startswith('train'))
    few = len(leaks) <= tested * TOLERATED_SHARE
    what = 'images to train on are also in a part to validate or test on: its figures are too good'
    report.add('leak', what, leaks, '' if few else 'take them out of the training part')
    report.add('leak', 'images to validate on are also in the part to test on', shared)
    report.add('duplicate', 'images are there twice under other names', doubled)
    return report.issues


def find_duplicates(sizes: Mapping[Path, int]) -> dict[Path, list[Path]]:
    """Return the files that have the content of another one, each with all that share it.

    Files are read only if others are as long: first their ends, then the whole.

    Args:
        sizes: Size in bytes of each file by its path.
    """
    groups = [list(sizes)]
    for describe in (sizes.get, _read_tail, compute_sha256):
        groups = [some for group in groups for some in _divide(group, describe) if len(some) > 1]
    return {path: group for group in groups for path in group}


def _divide(paths: list[Path], describe: Callable[[Path], object]) -> Iterable[list[Path]]:
    by_description = defaultdict(list)
    for path in paths:
        by_description[describe(path)].append(path)
    return by_description.values()


def _read_tail(path: Path) -> bytes:
    with path.open('rb') as file:
        file.seek(-min(TAIL, path.stat().st_size), 2)
        return file.read()
