"""Files from the web, under a temporary name until they are there as a whole."""

from __future__ import annotations

import hashlib
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib import request
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from contnet_mm.utils.errors import first_line

CHUNK = 1 << 18  # bytes read at once, at most
TIMEOUT = 60  # seconds without any data
DRIVE = 'drive.google.com'


def check_url(url: str) -> str:
    """Return an address if it is one of the web.

    Raises:
        ValueError: If it is no ``http://`` or ``https://`` address, or holds a password.
    """
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ('http', 'https') and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        is_web = False
    if not is_web or ' ' in url or not (url.isascii() and url.isprintable()):
        raise ValueError(f'{url!r} is no address of a file: give http://... or https://...')
    if parts.username is not None:
        raise ValueError(f'the address of a file on {parts.hostname} must not hold a password')
    return url


class _SameOrSafer(request.HTTPRedirectHandler):
    """Follow redirects to the web alone, and never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ('https', old):
            raise ConnectionError(f'redirects from {old} to {newurl}, which is refused')
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str] | None = None) -> HTTPResponse:
    """Send a request; raise a ConnectionError where there is no good answer."""
    opener = request.build_opener(_SameOrSafer)
    headers = {'User-Agent': 'contnet_mm', **(headers or {})}
    try:
        return opener.open(request.Request(url, headers=headers), timeout=TIMEOUT)
    except (OSError, HTTPException) as error:
        raise ConnectionError(f'{url} cannot be fetched: {first_line(error)}') from error


def download(url: str, target: Path) -> Path:
    """Download a file beside ``target``, under a temporary name.

    What an earlier try left is kept and completed, if the server says that the file is still the
    same (by ETag or date).

    Args:
        url: Its address, which :func:`check_url` has passed.
        target: The name that the file is to get once it has been checked.

    Returns:
        The temporary file. It holds as many bytes as the server announced.

    Raises:
        ConnectionError: If the server does not answer, or the connection ends too soon.
        OSError: If the disk is full, or the file cannot be written.
    """
    with _open(url) as response:
        identity = validator, total = _identify(response)
        part = name_part(target, url, *identity)
        kept = part.stat().st_size if part.exists() else 0
        if validator is None or total is None or kept > total:
            kept = 0
        if not kept:
            _receive(response, part, 'wb', total)
    if kept and kept < total:
        with _open(url, {'Range': f'bytes={kept}-', 'If-Range': validator}) as response:
            whole = response.status == 200 and _identify(response) == identity
            rest = f'bytes {kept}-{total - 1}/{total}'
            if not whole and response.headers.get('Content-Range') != rest:
                raise ConnectionError(
                    f'{url} did not send the bytes from {kept} on as asked (status '
                    f'{response.status}, {response.headers.get("Content-Range")}); remove {part} '
                    'and start anew'
                )
            _receive(response, part, 'wb' if whole else 'ab', total)
    size = part.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(
            f'{url}: the connection ended after {size} of {total} bytes, which are kept; run the '
            'same command to go on'
        )
    return part


def _identify(response: HTTPResponse) -> tuple[str | None, int | None]:
    """Return what tells this version of a file from others, and its length, where known."""
    tag = response.headers.get('ETag')
    if tag is None or tag.startswith('W/'):  # equal in meaning, maybe not in bytes
        tag = response.headers.get('Last-Modified')
    return tag, response.length


def name_part(target: Path, *identity: object) -> Path:
    """Return the temporary name for one version of a file, and remove those of others."""
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:8]
    part = target.with_name(f'{target.name}.{key}.part')
    for other in target.parent.glob(f'{target.name}.*.part'):
        if not other.name.startswith(part.name):  # gdown appends to a name
            other.unlink()
    return part


def _receive(response: HTTPResponse, part: Path, mode: str, total: int | None) -> None:
    """Append the rest of a response to a file, with a progress bar."""
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    try:
        with part.open(mode) as file, Progress(*columns, console=console) as progress:
            task = progress.add_task('', total=total, completed=file.tell())
            while chunk := _read(response):
                file.write(chunk)
                progress.advance(task, len(chunk))
    except ConnectionError as error:
        raise ConnectionError(
            f'{error} after {part.stat().st_size} of {total or "?"} bytes, which are kept; run '
            'the same command to go on'
        ) from error
    except OSError as error:
        raise OSError(
            f'{part} cannot be written: {error.strerror}; what has come is kept: make room and '
            'run the same command to go on'
        ) from error


def _read(response: HTTPResponse) -> bytes:
    """Read some bytes of a response; whatever fails becomes a ConnectionError."""
    try:
        return response.read1(CHUNK)
    except (OSError, HTTPException) as error:
        raise ConnectionError(f'{response.url}: {first_line(error)}') from error


def is_on_drive(url: str) -> bool:
    """Tell whether an address is of Google Drive, which gives files to gdown alone."""
    return urlsplit(url).hostname == DRIVE


def download_from_drive(url: str, target: Path) -> Path:
    """Download a file of Google Drive beside ``target`` as :func:`download` does, by gdown.

    Raises:
        ModuleNotFoundError: If gdown is not installed.
        OSError: If it cannot be fetched, not to its end, or not be written.
    """
    gdown = import_gdown()
    part = name_part(target, url)
    try:
        gdown.download(url, str(part), resume=True, use_cookies=False, timeout=TIMEOUT)
    except (gdown.exceptions.DownloadError, OSError) as error:
        raise OSError(f'{url} cannot be fetched: {_one_line(error)}') from error
    return part


def find_on_drive(folder: str, name: str) -> str:
    """Return the address of a file in a public folder of Google Drive.

    Raises:
        ModuleNotFoundError: If gdown is not installed.
        ConnectionError: If the folder cannot be listed.
        ValueError: If it has no such file; the message lists those that it has.
    """
    gdown = import_gdown()
    try:
        files = gdown.download_folder(
            folder, quiet=True, use_cookies=False, skip_download=True, timeout=TIMEOUT
        )
    except (gdown.exceptions.DownloadError, OSError) as error:
        raise ConnectionError(f'{folder} cannot be listed: {_one_line(error)}') from error
    urls = {file.path: f'https://{DRIVE}/uc?id={file.id}' for file in files}
    found = [url for path, url in urls.items() if Path(path).name.lower() == name.lower()]
    if len(found) != 1:
        listed = ', '.join(f'{path} ({url})' for path, url in urls.items()) or 'nothing'
        raise ValueError(
            f'{folder} has {len(found)} files of the name {name}. It has: {listed}; give the '
            'address of the right one'
        )
    return found[0]


def _one_line(error: Exception) -> str:
    """Return an error of gdown in one line; its first alone may say nothing."""
    return ' '.join(str(error).split())


def import_gdown():
    """Import the library that only Google Drive needs.

    Raises:
        ModuleNotFoundError: If it is not installed; the message says how to install it.
    """
    try:
        import gdown
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"files on {DRIVE} need gdown: pip install 'gdown>=6.5' (the extra `weights`)"
        ) from error
    return gdown
