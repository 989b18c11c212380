"""The zip archive that torch saves into, looked at before torch unpacks it."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import torch

MAGIC = b'PK\x03\x04'  # by which torch knows an archive
# torch compresses nothing; another program may have, but weights hardly shrink.
MAX_RATIO = 8
SPARE = 1 << 20  # bytes, for small files
CHUNK = 1 << 20  # bytes read at once
END, END_SIZE = b'PK\x05\x06', 22
LOCATOR_SIZE, END64_SIZE = 20, 56
IN_END64 = 0xFFFFFFFF


def check_archive(file: Path) -> dict[str, int]:
    """Check that an archive is whole, and small once unpacked; torch itself checks neither.

    A checksum of 0 stands for none, as ``torch.serialization.set_crc32_options(False)`` writes it.

    Returns:
        Bytes of the members, unpacked, by their names without folder.

    Raises:
        ValueError: If it is damaged, or not as torch writes one.
    """
    reader = torch._C.PyTorchFileReader(str(file))
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        total, there = sum(info.file_size for info in members), os.path.getsize(file)
        if total > MAX_RATIO * there + SPARE:
            raise ValueError(f'it would unpack to {total} bytes')
        # Both readers have to see the same members, or what is checked is not what is loaded.
        sizes = {info.filename.partition('/')[2]: info.file_size for info in members}
        names = [info.filename.partition('/')[2] for info in members]
        if len(sizes) < len(names) or sorted(reader.get_all_records()) != sorted(names):
            raise ValueError('names in the archive are there twice, or cannot be read')
        if _find_directory(file) != archive.start_dir:
            raise ValueError('the list of what is in the archive is not where it should be')
        for info in members:
            _check_member(archive, info)
    return sizes


def _check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Read a member to its end, and compare its checksum."""
    if info.CRC:
        with archive.open(info) as stream:  # which raises where they differ
            while stream.read(CHUNK):
                pass


def _find_directory(file: Path) -> int:
    """Return where the list of members begins by the end of the file, which has no comment."""
    with file.open('rb') as stream:
        start = max(0, os.path.getsize(file) - END_SIZE - LOCATOR_SIZE - END64_SIZE)
        stream.seek(start)
        tail = stream.read()
    end = tail[-END_SIZE:]
    if len(end) < END_SIZE or end[:4] != END:
        raise ValueError('it goes on behind the end of the archive')
    offset = struct.unpack_from('<L', end, 16)[0]
    if offset != IN_END64:
        return offset
    end64, locator = tail[:END64_SIZE], tail[END64_SIZE:-END_SIZE]
    if struct.unpack_from('<Q', locator, 8)[0] != start:
        raise ValueError('the end of the archive is not where it should be')
    return struct.unpack_from('<Q', end64, 48)[0]
