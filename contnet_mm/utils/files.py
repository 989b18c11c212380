"""Files that are written whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNFINISHED = '.unfinished'


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write a file under a temporary name and rename it; text as UTF-8.

    Args:
        path: The file; its folder is made where it is missing.
        content: All that it shall hold.

    Raises:
        OSError: If it cannot be written, with the name of the file; what was there stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}{UNFINISHED}')
    try:
        with unfinished.open('wb') as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # a power cut may not leave the name without the content
        os.replace(unfinished, path)
    except OSError as error:
        error.filename = str(path)  # writing names none
        raise
    finally:
        with suppress(OSError):  # such as that of a read-only disk, where there is nothing
            unfinished.unlink()


def write_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as a PNG file, as :func:`write_file` does."""
    picture = io.BytesIO()
    figure.savefig(picture, format='png', dpi=100)
    write_file(path, picture.getvalue())


def remove_unfinished(folder: str | Path) -> None:
    """Remove what :func:`write_file` has left in a folder where it was killed."""
    for path in Path(folder).glob(f'.*{UNFINISHED}'):
        path.unlink(missing_ok=True)


def compute_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
