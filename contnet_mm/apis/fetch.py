"""Fetch the weights of the paper's authors, check them, and convert them for the configs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from torch import Tensor

from contnet_mm.apis.convert import convert_file, read_network
from contnet_mm.checkpoint import download, sources
from contnet_mm.models.arch import ALIASES
from contnet_mm.utils.files import compute_sha256, write_file

LAYOUT = 'classifier'  # its accuracy can be checked, and detectors start from it too


class Pin(NamedTuple):
    """The content that was fetched first.

    Attributes:
        sha256: Of the file, in hexadecimal digits.
        origin: The address that it came from.
    """

    sha256: str
    origin: str


def fetch_weights(
    arch: str,
    source: str = 'official',
    folder: str | Path = sources.FOLDER,
    overwrite: bool = False,
    report: Callable[[str], object] = print,
    crops: Tensor | None = None,
) -> Path:
    """Fetch the ImageNet weights of an arch and convert them to what the configs name.

    The file as released stays beside the converted one, with a pin: its SHA-256 as ``sha256sum``
    writes it. Whatever is fetched later for this arch must be the same file.

    Args:
        arch: One of the paper's, ``'M'`` or ``'medium'``.
        source: ``'official'``, ``'mirror'``, or the address of a file.
        folder: Where to; it is made where it is missing.
        overwrite: Replace the converted file if it exists.
        report: Takes each line about what happens, at once.
        crops: As :func:`~contnet_mm.apis.convert.convert_file` takes them.

    Returns:
        The converted file.

    Raises:
        ConnectionError: If the file cannot be fetched, or not to its end.
        ModuleNotFoundError: If gdown is needed and not installed.
        OSError: If a file cannot be written.
        ValueError: If arch or source is unknown; if what came is no checkpoint of that arch, or
            not the file that is pinned; if a file is there already that would be replaced.
    """
    letters = find_letters(arch)
    origin = find_origin(letters, source)
    if source == 'official' or download.is_on_drive(origin):
        download.import_gdown()  # to name it before anything is done
    report(sources.NO_LICENCE)
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    fetched = folder / f'contnet-{letters.lower()}_download.pth'
    converted = folder / sources.CONVERTED[letters]
    with _lock(fetched, report):
        pin = read_pin(fetched)
        is_there = fetched.exists()
        if is_there:
            _check_kept(fetched, pin)
        is_done = is_there and pin.origin == origin
        if is_done:
            report(f'{fetched} is there already, from {origin}')
        if converted.exists() and not overwrite:
            if is_done:
                report(f'{converted} is there already')
                return converted
            raise ValueError(f'{converted} exists: give another folder or --overwrite')
        if not is_done:
            report(f'fetching {origin}')
            pin = _fetch(origin, letters, fetched, pin)
        report(f'{fetched}: sha256 {pin.sha256}')
        try:
            lines = convert_file(fetched, converted, LAYOUT, overwrite, crops=crops)
        except OSError as error:
            raise OSError(
                f'{converted} cannot be written: {error.strerror}; {fetched} is kept: make room '
                'and run the same command to go on'
            ) from error
        for line in lines:
            report(line)
    return converted


def find_letters(arch: str) -> str:
    """Return how the paper writes an arch, such as ``'M'`` for ``'medium'``.

    Raises:
        ValueError: If it is none of the paper's.
    """
    for letters, name in ALIASES.items():
        if arch in (letters, name):
            return letters
    raise ValueError(f'arch {arch!r} is unknown; choose one of {[*ALIASES, *ALIASES.values()]}')


def find_origin(letters: str, source: str) -> str:
    """Return the address that a source has for an arch.

    The file in the official folder has none before the folder was listed; it stands behind ``#``.

    Raises:
        ValueError: If the mirror has no such arch, or the source is no address.
    """
    if source == 'official':
        return f'{sources.OFFICIAL_FOLDER}#{sources.OFFICIAL_NAME.format(letters)}'
    if source != 'mirror':
        return download.check_url(source)
    if letters not in sources.MIRROR:
        raise ValueError(f'the mirror has {", ".join(sources.MIRROR)} alone, not {letters}')
    return sources.MIRROR[letters]


def _fetch(origin: str, letters: str, fetched: Path, pin: Pin | None) -> Pin:
    """Download a file, and give it its name if it is the right one."""
    url, _, name = origin.partition('#')
    if url == sources.OFFICIAL_FOLDER:
        url = download.find_on_drive(url, name)
    get = download.download_from_drive if download.is_on_drive(url) else download.download
    part = get(url, fetched)
    try:
        _check_arch(part, url, letters)
        sha256 = compute_sha256(part)
        if pin is not None and sha256 != pin.sha256:
            raise ValueError(
                f'{url} gave a file of sha256 {sha256}, but {name_pin(fetched)} pins {pin.sha256} '
                f'from {pin.origin}: the file has changed, or one of the two is not what it '
                'claims. Nothing was replaced; to trust the new one, remove the pin and '
                f'{fetched}, and fetch again'
            )
    except ValueError:
        part.unlink()
        raise
    if pin is None:  # before the file gets its name: no file is ever without
        write_file(name_pin(fetched), f'# {origin}\n{sha256}  {fetched.name}\n')
    part.replace(fetched)
    return pin or Pin(sha256, origin)


def _check_arch(part: Path, url: str, letters: str) -> None:
    try:
        arch = read_network(part).options['arch']
    except ValueError as error:
        reason = str(error).replace(str(part), 'the file')
        raise ValueError(f'{url} gave no checkpoint of a ConTNet: {reason}') from error
    if arch != ALIASES[letters]:
        raise ValueError(f'{url} gave a checkpoint of arch {arch!r}, not {ALIASES[letters]!r}')


def _check_kept(fetched: Path, pin: Pin | None) -> None:
    """Check that a file is the one that was fetched."""
    if pin is None:
        raise ValueError(
            f'{fetched} is there, but not {name_pin(fetched)}: it was not fetched by this '
            'command; move it away'
        )
    sha256 = compute_sha256(fetched)
    if sha256 != pin.sha256:
        raise ValueError(
            f'{fetched} has sha256 {sha256}, but {name_pin(fetched)} pins {pin.sha256}: it has '
            'changed since it was fetched; remove it and fetch again'
        )


def name_pin(fetched: Path) -> Path:
    """Return the name of the pin of a file."""
    return fetched.with_name(f'{fetched.name}.sha256')


def read_pin(fetched: Path) -> Pin | None:
    """Read the pin of a file; None if there is none.

    Raises:
        ValueError: If it is not what was once written.
    """
    path = name_pin(fetched)
    if not path.exists():
        return None
    match = re.fullmatch(r'# (.+)\n([0-9a-f]{64})  .+\n', path.read_text(encoding='utf-8'))
    if match is None:
        raise ValueError(f'{path} is damaged: it must hold a line "# ADDRESS" and one of sha256sum')
    return Pin(match[2], match[1])


@contextmanager
def _lock(fetched: Path, report: Callable[[str], object]) -> Iterator[None]:
    """Let one process at a time fetch a file; the others wait."""
    lock = FileLock(fetched.with_name(f'.{fetched.name}.lock'))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f'another process is fetching {fetched}: waiting for it')
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
