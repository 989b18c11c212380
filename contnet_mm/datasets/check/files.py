"""Listing folders and opening images."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from contnet_mm.utils.errors import first_line

from .findings import Finding, found

# Takes what is gone through and what it is called; gives the same things again.
Progress = Callable[[Iterable, str], Iterable]
# Images of a part that are opened unless all are asked for.
SAMPLE = 500
# Futures of a million images at once would fill the memory.
CHUNK = 1000
WORKERS = min(8, os.cpu_count() or 1)
EXIF_ORIENTATION = 0x0112
GREY_MODES = ('1', 'L', 'LA')
DEEP_MODES = ('I', 'F', 'I;16', 'I;16B', 'I;16L')


def no_progress(items: Iterable, text: str) -> Iterable:
    """Shows nothing."""
    return items


@dataclass(frozen=True)
class Image:
    """What opening an image told.

    Args:
        size: Height and width in pixels, turned as OpenCV turns it by its EXIF orientation.
        mode: Pillow's mode, such as 'RGB'.
        values: The pixel values that occur, where they were asked for.
    """

    size: tuple[int, int]
    mode: str
    values: frozenset[int] = frozenset()


@dataclass
class Examined:
    """Images of a part by their names.

    Args:
        images: Those that opened.
        empty: Those of 0 bytes.
        unreadable: Those that did not open, with the reason.
    """

    images: dict[str, Image] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


def list_files(folder: Path) -> dict[str, int]:
    """Lists all files below a folder; hidden ones are left out, as MMEngine does.

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


def read_list(part: str, what: str, path: Path, mend: str) -> Generator[Finding, None, list[str]]:
    """Reads a text file as MMEngine does; yields a finding where that is not possible.

    Args:
        part: The part, such as 'train'.
        what: What the file is, such as 'list of names'.
        path: The file.
        mend: The command that brings it.

    Returns:
        Its lines; none where it is missing or not UTF-8.
    """
    if not path.is_file():
        yield from found(part, 'layout', f'{what} is missing', mend, [path])
        return []
    try:
        return path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        yield from found(part, 'list', f'{what} is not UTF-8', mend, [f'{path}: {error}'])
        return []


def open_image(path: Path, values: bool = False) -> Image | str:
    """Decodes an image wholly.

    Args:
        path: The image.
        values: Whether to collect the pixel values.

    Returns:
        The image's facts, or the reason why it does not open.

    Raises:
        ImportError: If Pillow is missing.
    """
    pillow = _pillow()
    try:
        with pillow.open(path) as image:
            image.load()
            width, height = image.size
            if image.getexif().get(EXIF_ORIENTATION, 1) >= 5:
                width, height = height, width
            present = _unique(np.asarray(image)) if values else frozenset()
            return Image((height, width), image.mode, present)
    except Exception as error:  # damage can make a decoder fail in any way
        return first_line(error)


def examine(
    folder: Path,
    sizes: dict[str, int],
    names: list[str],
    every: bool,
    progress: Progress,
    text: str,
    values: bool = False,
) -> Examined:
    """Opens images of a part.

    Args:
        folder: Folder that the names start from.
        sizes: Size in bytes by name, as ``list_files`` gives it.
        names: The images; those that do not exist are left out.
        every: Whether to open all; otherwise ``SAMPLE`` of them, evenly spread.
        progress: Shows how far it is.
        text: What to call it.
        values: Whether to collect the pixel values.
    """
    result = Examined(empty=[name for name in names if sizes.get(name) == 0])
    there = [name for name in names if sizes.get(name)]
    chosen = there if every else there[:: max(1, -(-len(there) // SAMPLE))]
    # Decoding lets other threads run.
    with ThreadPoolExecutor(WORKERS) as pool:
        opened = _open_all(pool, folder, chosen, values)
        for name, image in zip(progress(chosen, text), opened, strict=True):
            if isinstance(image, str):
                result.unreadable[name] = image
            else:
                result.images[name] = image
    return result


def file_findings(part: str, what: str, examined: Examined, mend: str) -> Iterator[Finding]:
    """Yields what is wrong with files, whatever they show.

    Args:
        part: The part, such as 'train'.
        what: What the files are: 'images'.
        examined: The files.
        mend: The command that brings them again.
    """
    yield from found(part, 'empty-file', f'{what} have 0 bytes', mend, examined.empty)
    reasons = [f'{name}: {reason}' for name, reason in examined.unreadable.items()]
    yield from found(part, 'unreadable', f'{what} are damaged or cut short', mend, reasons)


def colour_notes(part: str, examined: Examined) -> Iterator[Finding]:
    """Yields notes on images that are not read as they are."""
    kinds = {
        'cmyk': (('CMYK', 'YCCK'), 'CMYK images: OpenCV and Pillow make other RGB of them'),
        'grey': (GREY_MODES, 'greyscale images: read as three equal channels'),
        'deep': (DEEP_MODES, 'images of more than 8 bits a channel: read with 8'),
    }
    for check, (modes, what) in kinds.items():
        names = [name for name, image in examined.images.items() if image.mode in modes]
        yield from found(part, check, f'{what}', '', names, note=True)


def _open_all(
    pool: ThreadPoolExecutor, folder: Path, names: list[str], values: bool
) -> Iterator[Image | str]:
    for start in range(0, len(names), CHUNK):
        paths = [folder / name for name in names[start : start + CHUNK]]
        yield from pool.map(lambda path: open_image(path, values), paths)


def _unique(pixels: np.ndarray) -> frozenset[int]:
    # Counting is several times as fast as sorting a picture of bytes.
    if pixels.dtype == np.uint8:
        return frozenset(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist())
    return frozenset(np.unique(pixels).tolist())


def _pillow() -> object:
    try:
        from PIL import Image as pillow
    except ImportError as error:
        raise ImportError('Pillow, which opens images, is missing: pip install pillow') from error
    return pillow
