"""Files that are written whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write a file under a temporary name and rename it; text as UTF-8.

    Args:
        path: The file; its folder is made where it is missing.
        content: All that it shall hold.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}.unfinished')
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def compute_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
