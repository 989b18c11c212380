"""The files that torch writes, taken apart and put together again with something else in them."""

import io
import pickle
import pickletools
import tarfile
import zipfile
import zlib

import torch

from tests.reliability.pickle_tricks import Storage, encode

ZEROS = 3 << 30  # bytes that a zip bomb unpacks to


def split_legacy(data):
    """Return the four pickles that a file in the old format starts with, and the rest."""
    stream, parts = io.BytesIO(data), []
    for _ in range(4):
        start = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        parts.append(data[start : stream.tell()])
    return [*parts, data[stream.tell() :]]


class StorageFinder(pickle.Unpickler):
    found = None

    def persistent_load(self, pid):
        if self.found is None and pid[1].dtype is torch.float32:
            self.found = ('storage', Storage().kind, *pid[2:])
        dtype = pid[1].dtype
        return torch.storage.TypedStorage(pid[4], dtype=dtype)


def point(code, storage):
    """Let forged values refer to a storage that there is."""
    return code.replace(encode(Storage()), encode(storage))


def pack(members, compression=zipfile.ZIP_STORED):
    """Return an archive; members are pairs or a dict."""
    stream = io.BytesIO()
    pairs = members.items() if isinstance(members, dict) else members
    with zipfile.ZipFile(stream, 'w', compression) as archive:
        for name, data in pairs:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return stream.getvalue()


def pickle_name(members):
    return next(name for name in members if name.endswith('data.pkl'))


def write_bomb(members, end):
    """Return an archive of which one member is 3 GB of zeros when it is unpacked, 3 MB before."""
    name = next(name for name in members if name.endswith(end))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
        for key, data in members.items():
            if key != name:
                archive.writestr(zipfile.ZipInfo(key), data)
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(info, 'w', force_zip64=True) as file:
            file._compressor, file._file_size, file._crc = _Zeros(), ZEROS, 1
    return stream.getvalue()


class _Zeros:
    """Stands in for a compressor: gives three gigabytes of zeros, compressed, in no time."""

    def compress(self, data):
        return b''

    def flush(self):
        worker = zlib.compressobj(9, zlib.DEFLATED, -15)
        # After a full flush nothing is remembered: the next block gives the same bytes.
        block = worker.compress(bytes(1 << 20)) + worker.flush(zlib.Z_FULL_FLUSH)
        return block * (ZEROS >> 20) + worker.flush()


def make_tar(members, mode='w'):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def tar_of_size(size):
    """Return the head of a tar archive whose first entry, an extended header, claims a size."""
    info = tarfile.TarInfo('x')
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.GNU_FORMAT)
