"""Files from the web arrive whole, go on after an interruption, and are never two files in one."""

import socket
import subprocess
import sys
import threading
from urllib import request

import pytest

from contnet_mm.checkpoint import download as module
from contnet_mm.checkpoint.download import (
    check_url,
    download,
    download_from_drive,
    find_on_drive,
)
from tests.file_server import serve
from tests.helpers import ROOT, run_python

CONTENT = bytes(range(256)) * 4000  # about a million bytes: several reads
OTHER = CONTENT[::-1]


@pytest.fixture
def server():
    with serve(CONTENT) as server:
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / 'weights.pth'


def leave_a_part(server, target, num_bytes=300_000):
    """Let a download be cut; return what it left."""
    server.cut = num_bytes
    with pytest.raises(ConnectionError, match=f'after {num_bytes} of {len(CONTENT)} bytes.*kept'):
        download(server.url, target)
    server.cut = None
    (part,) = target.parent.iterdir()
    assert part.read_bytes() == CONTENT[:num_bytes]
    return part


def test_a_file_arrives_under_a_temporary_name(server, target, capfd):
    part = download(server.url, target)
    assert part.read_bytes() == CONTENT
    assert [*target.parent.iterdir()] == [part] and part.suffix == '.part'
    assert '1.0/1.0 MB' in capfd.readouterr().err


@pytest.mark.parametrize(
    'validator',
    [{'ETag': '"1"'}, {'ETag': 'W/"1"', 'Last-Modified': 'Tue, 25 May 2021 10:00:00 GMT'}],
)
def test_a_cut_download_goes_on_where_it_ended(server, target, validator):
    server.headers = validator
    part = leave_a_part(server, target)
    assert download(server.url, target) == part
    assert part.read_bytes() == CONTENT
    assert server.ranges == [None, None, 'bytes=300000-']


def test_a_download_that_was_complete_is_not_repeated(server, target):
    part = download(server.url, target)
    changed = part.stat().st_mtime_ns
    assert download(server.url, target) == part
    assert part.stat().st_mtime_ns == changed and server.ranges == [None, None]


def test_a_file_that_changed_on_the_server_is_fetched_anew(server, target):
    leave_a_part(server, target)
    server.content, server.headers = OTHER, {'ETag': '"second"'}
    part = download(server.url, target)
    assert part.read_bytes() == OTHER
    assert [*target.parent.iterdir()] == [part]


def test_a_file_that_changes_between_two_requests_is_not_mixed(server, target, monkeypatch):
    part = leave_a_part(server, target)
    opened = module._open

    def open_and_change(url, headers=None):
        if headers:
            server.content, server.headers = OTHER, {'ETag': '"second"'}
        return opened(url, headers)

    monkeypatch.setattr(module, '_open', open_and_change)
    with pytest.raises(ConnectionError, match='did not send the bytes from 300000 on'):
        download(server.url, target)
    assert part.read_bytes() == CONTENT[:300_000]


@pytest.mark.parametrize('headers', [{}, {'ETag': 'W/"weak"'}])
def test_without_a_proof_that_the_file_is_the_same_it_is_fetched_anew(server, target, headers):
    server.headers = headers
    leave_a_part(server, target)
    assert download(server.url, target).read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_another_address_does_not_go_on_with_what_is_there(server, target):
    leave_a_part(server, target)
    part = download(server.url + '?2', target)
    assert part.read_bytes() == CONTENT and server.ranges == [None, None]
    assert [*target.parent.iterdir()] == [part]


def test_a_server_that_knows_no_ranges_sends_the_whole_file(server, target):
    leave_a_part(server, target)
    server.status = 200
    assert download(server.url, target).read_bytes() == CONTENT
    assert server.ranges[-1] == 'bytes=300000-'


@pytest.mark.parametrize('answer', ['bytes 0-1023999/1024000', 'bytes 300000-400000/1024000'])
def test_a_range_that_was_not_asked_for_is_refused(server, target, answer):
    part = leave_a_part(server, target)
    server.range = answer
    with pytest.raises(ConnectionError, match=f'did not send.*{answer}.*remove'):
        download(server.url, target)
    assert part.read_bytes() == CONTENT[:300_000]


def test_a_body_longer_than_announced_is_not_read(server, target):
    server.announced = 1000
    assert download(server.url, target).read_bytes() == CONTENT[:1000]


def test_a_body_of_unknown_length_is_read_to_its_end(server, target):
    server.announced = None
    assert download(server.url, target).read_bytes() == CONTENT


def test_a_server_that_refuses_is_named(server, target):
    server.status = 404
    with pytest.raises(ConnectionError, match=f'{server.url} cannot be fetched: HTTP Error 404'):
        download(server.url, target)
    assert not [*target.parent.iterdir()]


def test_no_server_is_named(target):
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{free.getsockname()[1]}/file.pth'
        with pytest.raises(ConnectionError, match=f'{url} cannot be fetched: .*refused'):
            download(url, target)


def test_a_server_that_falls_silent_is_given_up(server, target, monkeypatch):
    monkeypatch.setattr(module, 'TIMEOUT', 0.2)
    server.gate = threading.Event()
    with pytest.raises(ConnectionError, match='timed out after 512000 of 1024000 bytes.*kept'):
        download(server.url, target)
    server.gate.set()
    server.gate = None
    assert download(server.url, target).read_bytes() == CONTENT
    assert server.ranges[-1] == 'bytes=512000-'


@pytest.mark.parametrize('location', ['file:///etc/passwd', 'ftp://127.0.0.1/file'])
def test_a_redirect_out_of_the_web_is_refused(server, target, location):
    server.status, server.headers = 302, {'Location': location}
    with pytest.raises(ConnectionError, match='cannot be fetched'):
        download(server.url, target)
    assert not [*target.parent.iterdir()]


def test_a_download_goes_on_behind_a_redirect(server, target):
    url = f'http://127.0.0.1:{server.server_port}/moved/file.pth'
    server.cut = 300_000
    with pytest.raises(ConnectionError, match='ended after 300000 of'):
        download(url, target)
    server.cut = None
    assert download(url, target).read_bytes() == CONTENT
    assert server.ranges[-1] == 'bytes=300000-'


def test_a_redirect_from_https_to_http_is_refused():
    asked = request.Request('https://127.0.0.1/file.pth')
    handler = module._SameOrSafer()
    with pytest.raises(ConnectionError, match='from https to http://127.0.0.1/file.pth'):
        handler.redirect_request(asked, None, 302, '', {}, 'http://127.0.0.1/file.pth')
    assert handler.redirect_request(asked, None, 302, '', {}, 'https://127.0.0.1/other.pth')


@pytest.mark.parametrize(
    'url',
    [
        'mirrors',
        'file:///etc/passwd',
        'ftp://127.0.0.1/file.pth',
        'http:///file.pth',
        'http://127.0.0.1:port/file.pth',
        'https://[::1/file.pth',
        'https://127.0.0.1/my file.pth',
        'https://127.0.0.1/file.pth\n',
        'https://127.0.0.1/datei-für-m.pth',
        '/home/me/file.pth',
        '',
    ],
)
def test_what_is_no_address_of_the_web_is_named(url):
    with pytest.raises(ValueError, match='is no address of a file') as error:
        check_url(url)
    assert repr(url) in str(error.value)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match='must not hold a password') as error:
        check_url('https://me:secret@127.0.0.1/file.pth')
    assert 'secret' not in str(error.value)


CODE = """
import resource, sys
from pathlib import Path
from contnet_mm.checkpoint.download import download
if int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    download(sys.argv[1], Path(sys.argv[2]))
except OSError as error:
    sys.exit(str(error))
"""


def assert_a_full_disk_keeps_what_has_come(server, target, limit, reason):
    result = run_python('-c', CODE, server.url, target, limit, cwd=ROOT)
    (part,) = target.parent.iterdir()
    assert f'{part} cannot be written: {reason}; what has come is kept' in result.stderr
    kept = part.read_bytes()
    assert 0 < len(kept) < len(CONTENT) and CONTENT.startswith(kept)
    return part


def test_a_file_that_may_not_grow_keeps_what_has_come_and_goes_on(server, target):
    part = assert_a_full_disk_keeps_what_has_come(server, target, 500_000, 'File too large')
    kept = part.stat().st_size
    assert download(server.url, target).read_bytes() == CONTENT
    assert server.ranges[-1] == f'bytes={kept}-'


def test_a_full_disk_keeps_what_has_come_and_goes_on_with_room(server, small_disk):
    target = small_disk / 'weights.pth'
    reason = 'No space left on device'
    part = assert_a_full_disk_keeps_what_has_come(server, target, 0, reason)
    kept = part.stat().st_size
    subprocess.run(['mount', '-o', 'remount,size=4m', str(small_disk)], check=True)
    assert download(server.url, target).read_bytes() == CONTENT
    assert server.ranges[-1] == f'bytes={kept}-'


def test_a_folder_that_may_not_be_written_is_named(server, target):
    target.parent.rmdir()
    with pytest.raises(OSError, match='cannot be written: No such file or directory'):
        download(server.url, target)
    target.parent.mkdir()


DRIVE = 'https://drive.google.com'
FOLDER = f'{DRIVE}/drive/folders/{"f" * 33}'
FILES = {'checkpoint_M.pth': 'm' * 33, 'B.pth': 'b' * 33}
LISTING = '<title>ConTNet</title>' + ''.join(
    f'<a href="{DRIVE}/file/d/{key}/view">{name}</a>' for name, key in FILES.items()
)


@pytest.fixture
def drive(server, monkeypatch):
    """What gdown asks Google Drive for comes from this machine."""
    pytest.importorskip('gdown')
    import requests

    send = requests.Session.send

    def send_here(session, prepared, **kwargs):
        assert prepared.url.startswith(f'{DRIVE}/')
        prepared.url = prepared.url.replace(DRIVE, f'http://127.0.0.1:{server.server_port}')
        return send(session, prepared, **kwargs)

    monkeypatch.setattr(requests.Session, 'send', send_here)
    server.headers['Content-Type'] = 'application/octet-stream'
    server.headers['Content-Disposition'] = 'attachment; filename="some.pth"'
    server.pages['/embeddedfolderview'] = LISTING
    return server


def test_a_file_in_a_folder_of_drive_is_found_by_its_name(drive):
    assert find_on_drive(FOLDER, 'checkpoint_m.pth') == f'{DRIVE}/uc?id={FILES["checkpoint_M.pth"]}'


def test_a_name_that_a_folder_of_drive_has_not_is_an_error_that_lists_those_it_has(drive):
    with pytest.raises(ValueError, match='0 files of the name checkpoint_B.pth') as error:
        find_on_drive(FOLDER, 'checkpoint_B.pth')
    assert f'B.pth ({DRIVE}/uc?id={FILES["B.pth"]})' in str(error.value)


def test_a_folder_of_drive_that_is_not_public_is_named(drive):
    drive.pages = {}
    drive.status = 404
    with pytest.raises(ConnectionError, match=f'{FOLDER} cannot be listed: .*404'):
        find_on_drive(FOLDER, 'checkpoint_M.pth')


def test_a_file_of_drive_goes_on_where_it_ended(drive, target):
    url = f'{DRIVE}/uc?id={FILES["checkpoint_M.pth"]}'
    drive.cut = 600_000
    with pytest.raises(OSError, match=r'cannot be fetched: .*incomplete: received \d+ bytes'):
        download_from_drive(url, target)
    (left,) = target.parent.iterdir()
    assert 0 < left.stat().st_size <= 600_000 and left.suffix == '.part'
    drive.cut = None
    part = download_from_drive(url, target)
    assert part.read_bytes() == CONTENT
    assert [*target.parent.iterdir()] == [part]
    assert any(drive.ranges)


def test_a_file_of_drive_that_too_many_fetched_is_an_error(drive, target):
    drive.pages['/uc'] = '<p class="uc-error-subcaption">Too many users have downloaded it.</p>'
    with pytest.raises(OSError, match='cannot be fetched: .*Too many users'):
        download_from_drive(f'{DRIVE}/uc?id={FILES["B.pth"]}', target)
    assert not [*target.parent.iterdir()]


def test_a_missing_gdown_is_named(target, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gdown', None)
    with pytest.raises(ModuleNotFoundError, match="pip install 'gdown>="):
        download_from_drive(f'{DRIVE}/uc?id={FILES["B.pth"]}', target)
    with pytest.raises(ModuleNotFoundError, match="pip install 'gdown>="):
        find_on_drive(FOLDER, 'checkpoint_M.pth')
