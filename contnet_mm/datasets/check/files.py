"""Listing folders, reading lists and opening images."""

from __future__ import annotations

import os
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.progress import track

from contnet_mm.utils.errors import first_line

from .issues import Report

# Images of a part that are opened unless all are asked for.
SAMPLE = 500
WORKERS = min(8, os.cpu_count() or 1)
EXIF_ORIENTATION = 0x0112
# Name of the check: modes of Pillow, and how their images are read.
COLOUR_NOTES = {
    'cmyk': (('CMYK', 'YCCK'), 'CMYK images: OpenCV and Pillow make other RGB of them'),
    'grey': (('1', 'L', 'LA'), 'greyscale images: read as three equal channels'),
    'deep': (
        ('I', 'F', 'I;16', 'I;16B', 'I;16L'),
        'images of more than 8 bits a channel: read with 8',
    ),
}


class ImageInfo(NamedTuple):
    """What opening an image told.

    Args:
        size: Height and width in pixels, turned as OpenCV turns it by its EXIF orientation.
        mode: Pillow's mode, such as 'RGB'.
        values: The pixel values that occur, where they were asked for.
    """

    size: tuple[int, int]
    mode: str
    values: frozenset[int] = frozenset()


def list_files(folder: Path) -> dict[str, int]:
    """List all files below a folder; hidden ones are left out, as MMEngine does.

    Returns:
        Size in bytes by path relative to the folder, with '/' between folders, sorted.
    """
    sizes = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        below = os.path.relpath(parent, folder).replace(os.sep, '/')
        prefix = '' if below == '.' else f'{below}/'
        for name in names:
            path = os.path.join(parent, name)
            # A link that leads nowhere is a missing file.
            if not name.startswith('.') and os.path.isfile(path):
                sizes[prefix + name] = os.path.getsize(path)
    return dict(sorted(sizes.items()))


def is_file(path: Path) -> bool:
    """Tell whether there is a file, also of a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, for instance
        return False


def read_list(report: Report, what: str, path: Path, fix: str) -> list[str]:
    """Return the lines of a text file; report a missing one, and one that MMEngine cannot read."""
    if not path.is_file():
        report.add('layout', f'{what} is missing', [path], fix)
        return []
    try:
        return path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        report.add('list', f'{what} is not UTF-8', [f'{path}: {error}'], fix)
        return []


def open_images(
    report: Report,
    what: str,
    folder: Path,
    names: list[str],
    sizes: dict[str, int],
    fix: str,
    values: bool = False,
) -> dict[str, ImageInfo]:
    """Open images of a part, all of them or a sample, and report those that are damaged.

    Args:
        report: Gets the issues.
        what: What the files are: 'images'.
        folder: Folder that the names start from.
        names: The images; those that do not exist are left out.
        sizes: Size in bytes by name, as ``list_files`` gives it.
        fix: The command that brings them again.
        values: Whether to collect the pixel values.

    Returns:
        Those that opened, by name.
    """
    report.add('empty-file', f'{what} have 0 bytes', [n for n in names if sizes.get(n) == 0], fix)
    there = [name for name in names if sizes.get(name)]
    if not values:  # label images may well be alike
        report.images |= {folder / name: sizes[name] for name in there}
    chosen = there if report.all_images else there[:: max(1, -(-len(there) // SAMPLE))]
    # Decoding lets other threads run.
    with ThreadPool(WORKERS) as pool:
        opened = pool.imap(lambda name: _open_image(folder / name, values), chosen, chunksize=16)
        text, hide = f'{report.part}: {what}', not sys.stdout.isatty()
        watched = track(opened, text, len(chosen), transient=True, disable=hide)
        named = list(zip(chosen, watched, strict=True))
    damaged = [f'{name}: {reason}' for name, reason in named if isinstance(reason, str)]
    report.add('unreadable', f'{what} are damaged or cut short', damaged, fix)
    return {name: info for name, info in named if isinstance(info, ImageInfo)}


def note_colours(report: Report, images: dict[str, ImageInfo]) -> None:
    """Add notes on images that are not read as they are."""
    for check, (modes, what) in COLOUR_NOTES.items():
        report.add(check, what, [name for name, image in images.items() if image.mode in modes])


def _open_image(path: Path, values: bool) -> ImageInfo | str:
    """Decode an image to its end; return what it told, or the reason why that fails."""
    try:
        with Image.open(path) as image:
            image.load()
            width, height = image.size
            if image.getexif().get(EXIF_ORIENTATION, 1) >= 5:
                width, height = height, width
            present = _unique(np.asarray(image)) if values else frozenset()
            return ImageInfo((height, width), image.mode, present)
    except Exception as error:  # damage can make a decoder fail in any way
        return first_line(error)


def _unique(pixels: np.ndarray) -> frozenset[int]:
    # Counting is several times as fast as sorting a picture of bytes.
    if pixels.dtype == np.uint8:
        return frozenset(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist())
    return frozenset(np.unique(pixels).tolist())
