"""Fetched weights get their name once they are right, stay the same file, and fit the configs."""

import errno
import multiprocessing
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from contnet_mm import ConTNet
from contnet_mm.apis import fetch
from contnet_mm.apis.fetch import fetch_weights
from contnet_mm.checkpoint import sources
from contnet_mm.checkpoint.official_keys import convert_to_official
from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.models.arch import ALIASES
from contnet_mm.utils.files import compute_sha256
from tests.file_server import serve
from tests.helpers import ROOT, RunsCode, run_tool

KEPT, PIN, OURS = 'contnet-ti_download.pth', 'contnet-ti_download.pth.sha256', 'contnet-ti_in1k.pth'
HTML = b'<!DOCTYPE html><html><body>Too many downloads, come back tomorrow</body></html>'


def official_file(path, bias=0.0, **more):
    """Write a file as released, of ConT-Ti; return its bytes."""
    state_dict = convert_to_official(ConTNet('Ti').state_dict())
    state_dict['fc.weight'], state_dict['fc.bias'] = torch.zeros(9, 768), torch.full((9,), bias)
    torch.save({'model': state_dict, **more}, path)
    return path.read_bytes()


@pytest.fixture(scope='module')
def contents(tmp_path_factory):
    """Two files that differ."""
    folder = tmp_path_factory.mktemp('released')
    return [official_file(folder / f'{bias}.pth', bias) for bias in (0.0, 1.0)]


@pytest.fixture
def server(contents):
    with serve(contents[0]) as server:
        yield server


def names(folder):
    """Return what is in a folder, but for the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != f'.{KEPT}.lock')


def test_what_is_fetched_is_pinned_and_converted(server, tmp_path):
    lines = []
    ours = fetch_weights('Ti', server.url, tmp_path, report=lines.append)
    assert ours == tmp_path / OURS and names(tmp_path) == [KEPT, PIN, OURS]
    assert (tmp_path / KEPT).read_bytes() == server.content
    assert read_checkpoint(ours)['state_dict']['head.fc.bias'].shape == (9,)
    ConTNet('Ti', init_cfg=dict(type='Pretrained', checkpoint=str(ours))).init_weights()
    assert any(line.endswith(f'sha256 {compute_sha256(tmp_path / KEPT)}') for line in lines)
    subprocess.run(['sha256sum', '--check', '--strict', PIN], cwd=tmp_path, check=True)
    assert server.url in (tmp_path / PIN).read_text()


def test_the_missing_licence_is_said_before_anything_else(tmp_path):
    lines = []
    with pytest.raises(ConnectionError):
        fetch_weights('Ti', 'http://127.0.0.1:1/file.pth', tmp_path / 'new', report=lines.append)
    assert lines[0] == sources.NO_LICENCE and 'no licence' in lines[0]


def test_a_second_fetch_asks_nobody(server, tmp_path):
    ours = fetch_weights('Ti', server.url, tmp_path)
    before = [(tmp_path / name).stat().st_mtime_ns for name in names(tmp_path)]
    assert fetch_weights('tiny', server.url, tmp_path) == ours
    assert [(tmp_path / name).stat().st_mtime_ns for name in names(tmp_path)] == before
    assert len(server.ranges) == 1


@pytest.mark.parametrize('what_is_gone', [[KEPT, OURS], [OURS]])
def test_a_second_fetch_that_differs_is_refused(server, tmp_path, contents, what_is_gone):
    fetch_weights('Ti', server.url, tmp_path)
    for name in what_is_gone:
        (tmp_path / name).unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    server.content = contents[1]
    server.headers = {'ETag': '"second"'}
    with pytest.raises(ValueError, match=f'{PIN} pins .* Nothing was replaced') as error:
        fetch_weights('Ti', f'{server.url}?again', tmp_path)
    assert server.url in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_same_file_from_elsewhere_is_welcome(server, tmp_path):
    fetch_weights('Ti', server.url, tmp_path)
    pin = (tmp_path / PIN).read_text()
    fetch_weights('Ti', f'{server.url}?elsewhere', tmp_path, overwrite=True)
    assert len(server.ranges) == 2
    assert (tmp_path / PIN).read_text() == pin and names(tmp_path) == [KEPT, PIN, OURS]


def cut_short(server, tmp_path):
    server.announced = len(server.content) // 2


def lose_the_end(server, tmp_path):
    server.announced, server.cut = None, len(server.content) - 1


def send_html(server, tmp_path):
    server.content = HTML


def send_nothing(server, tmp_path):
    server.content = b''


def send_another_network(server, tmp_path):
    torch.save({'conv.weight': torch.zeros(3)}, tmp_path / 'other')
    server.content = (tmp_path / 'other').read_bytes()
    (tmp_path / 'other').unlink()


def send_code(server, tmp_path):
    server.content = official_file(tmp_path / 'bad', extra=RunsCode(tmp_path / 'ran'))
    (tmp_path / 'bad').unlink()


@pytest.mark.parametrize(
    'fault, words',
    [
        (cut_short, 'damaged or cut short'),
        (lose_the_end, 'damaged or cut short'),
        (send_html, 'the file is a web page, not a checkpoint'),
        (send_nothing, r'\(0 bytes\) is damaged or cut short'),
        (send_another_network, 'holds no ConTNet'),
        (send_code, r'is refused.*mkdir'),
    ],
)
def test_what_is_no_checkpoint_never_gets_a_name(server, tmp_path, fault, words):
    fault(server, tmp_path)
    with pytest.raises(ValueError, match=f'gave no checkpoint of a ConTNet: .*{words}') as error:
        fetch_weights('Ti', server.url, tmp_path)
    assert str(error.value).startswith(server.url) and '.part' not in str(error.value)
    assert names(tmp_path) == []


def test_a_checkpoint_of_another_arch_never_gets_a_name(server, tmp_path):
    with pytest.raises(ValueError, match="checkpoint of arch 'tiny', not 'medium'"):
        fetch_weights('M', server.url, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == ['.lock']


def test_a_file_without_classifier_is_kept_and_not_converted(server, tmp_path):
    state_dict = convert_to_official(ConTNet('Ti').state_dict())
    torch.save(state_dict, tmp_path / 'bare')
    server.content = (tmp_path / 'bare').read_bytes()
    (tmp_path / 'bare').unlink()
    with pytest.raises(ValueError, match='holds no classifier'):
        fetch_weights('Ti', server.url, tmp_path)
    assert names(tmp_path) == [KEPT, PIN]


def test_a_file_that_changed_on_disk_is_not_used(server, tmp_path):
    fetch_weights('Ti', server.url, tmp_path)
    with (tmp_path / KEPT).open('ab') as file:
        file.write(b'!')
    with pytest.raises(ValueError, match=f'{KEPT} has sha256 .* changed since'):
        fetch_weights('Ti', server.url, tmp_path)
    assert len(server.ranges) == 1


def test_a_file_that_nobody_fetched_is_not_replaced(server, tmp_path):
    (tmp_path / KEPT).write_bytes(b'precious')
    with pytest.raises(ValueError, match=f'{KEPT} is there, but not .*{PIN}.*move it away'):
        fetch_weights('Ti', server.url, tmp_path)
    assert (tmp_path / KEPT).read_bytes() == b'precious' and not server.ranges


def test_a_damaged_pin_is_named(server, tmp_path):
    (tmp_path / PIN).write_text('0123\n')
    with pytest.raises(ValueError, match=f'{PIN} is damaged'):
        fetch_weights('Ti', server.url, tmp_path)
    assert not server.ranges


def test_a_converted_file_is_kept_until_overwrite(server, tmp_path):
    (tmp_path / OURS).write_bytes(b'precious')
    with pytest.raises(ValueError, match=f'{OURS} exists: .*--overwrite'):
        fetch_weights('Ti', server.url, tmp_path)
    assert (tmp_path / OURS).read_bytes() == b'precious' and not server.ranges
    fetch_weights('Ti', server.url, tmp_path, overwrite=True)
    assert len(read_checkpoint(tmp_path / OURS)['state_dict']) > 9


@pytest.mark.parametrize('moment', ['write_file', 'convert_file'])
def test_what_is_interrupted_after_the_download_does_not_repeat_it(
    server, tmp_path, monkeypatch, moment
):
    function = getattr(fetch, moment)

    def interrupt(*args, **kwargs):
        function(*args, **kwargs)
        if moment == 'convert_file':
            (tmp_path / OURS).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, moment, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_weights('Ti', server.url, tmp_path)
    monkeypatch.undo()
    server.cut = 0  # whoever asks for bytes gets none
    assert fetch_weights('Ti', server.url, tmp_path).exists()
    assert names(tmp_path) == [KEPT, PIN, OURS]


def test_a_disk_that_is_full_at_the_conversion_keeps_the_download(server, tmp_path, monkeypatch):
    def fill(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(fetch, 'convert_file', fill)
    words = f'{OURS} cannot be written: No space left on device; .*{KEPT} is kept'
    with pytest.raises(OSError, match=words):
        fetch_weights('Ti', server.url, tmp_path)
    assert names(tmp_path) == [KEPT, PIN]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def size_of_part(folder):
    return sum(path.stat().st_size for path in folder.glob('*.part'))


def start_fetch(server, folder):
    process = multiprocessing.get_context('fork').Process(
        target=fetch_weights, args=('Ti', server.url, folder)
    )
    process.start()
    return process


def test_a_killed_fetch_goes_on_where_it_ended(server, tmp_path):
    server.gate = threading.Event()
    process = start_fetch(server, tmp_path)
    half = len(server.content) // 2
    wait_for(lambda: size_of_part(tmp_path) == half)
    process.kill()
    process.join()
    server.gate.set()
    assert [Path(name).suffix for name in names(tmp_path)] == ['.part']
    fetch_weights('Ti', server.url, tmp_path)
    assert server.ranges[-1] == f'bytes={half}-'
    assert names(tmp_path) == [KEPT, PIN, OURS]
    assert (tmp_path / KEPT).read_bytes() == server.content


def test_two_at_once_fetch_one_file(server, tmp_path):
    server.gate = threading.Event()
    process = start_fetch(server, tmp_path)
    wait_for(lambda: size_of_part(tmp_path))
    lines = []
    second = threading.Thread(
        target=fetch_weights, args=('Ti', server.url, tmp_path), kwargs=dict(report=lines.append)
    )
    second.start()
    wait_for(lambda: any('waiting' in line for line in lines))
    server.gate.set()
    process.join(60)
    second.join()
    assert process.exitcode == 0
    assert len(server.ranges) == 1
    assert names(tmp_path) == [KEPT, PIN, OURS]
    assert any('is there already' in line for line in lines)


def test_a_file_of_the_folder_of_the_authors_is_taken_by_its_name(monkeypatch, tmp_path, contents):
    found = []

    def find(folder, name):
        found.extend([folder, name])
        return 'https://drive.google.com/uc?id=some'

    def download_from_drive(url, target):
        part = target.with_name(f'{target.name}.0.part')
        part.write_bytes(contents[0])
        return part

    monkeypatch.setattr(fetch.download, 'import_gdown', lambda: None)
    monkeypatch.setattr(fetch.download, 'find_on_drive', find)
    monkeypatch.setattr(fetch.download, 'download_from_drive', download_from_drive)
    fetch_weights('Ti', folder=tmp_path)
    assert found == [sources.OFFICIAL_FOLDER, 'checkpoint_Ti.pth']
    assert names(tmp_path) == [KEPT, PIN, OURS]
    fetch_weights('Ti', folder=tmp_path)
    assert len(found) == 2


def test_a_missing_gdown_is_named_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'gdown', None)
    for source in ('official', 'https://drive.google.com/file/d/some/view'):
        with pytest.raises(ModuleNotFoundError, match="gdown: pip install 'gdown>="):
            fetch_weights('M', source, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
    'arch, source, words',
    [
        ('L', 'mirror', r"arch 'L' is unknown; choose one of \['Ti', .*'base'\]"),
        ('Ti', 'mirror', 'the mirror has M, B alone, not Ti'),
        ('M', 'mirrors', "'mirrors' is no address"),
        ('M', 'file:///etc/passwd', 'is no address'),
    ],
)
def test_bad_input_is_named_before_anything_is_written(tmp_path, arch, source, words):
    with pytest.raises(ValueError, match=words):
        fetch_weights(arch, source, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


def test_every_arch_gets_the_name_that_the_configs_want():
    assert set(sources.CONVERTED) == set(ALIASES) and set(sources.MIRROR) <= set(ALIASES)
    texts = [path.read_text() for path in (ROOT / 'configs').rglob('*.py')]
    wanted = {name for text in texts for name in re.findall(r"'checkpoints/(.+_in1k\.pth)'", text)}
    assert wanted and wanted <= set(sources.CONVERTED.values())


def test_the_page_has_the_addresses_that_the_command_uses():
    page = (ROOT / 'docs/weights.md').read_text()
    for address in (sources.OFFICIAL_FOLDER, *sources.MIRROR.values()):
        assert f'({address})' in page


def test_the_tool_runs_from_any_folder(server, tmp_path):
    result = run_tool('fetch_weights', 'tiny', '--from', server.url, '--no-probe', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(sources.NO_LICENCE) and 'MB' in result.stderr
    assert names(tmp_path / 'checkpoints') == [KEPT, PIN, OURS]


def test_the_tool_prints_an_error_in_one_line(server, tmp_path):
    server.content = HTML
    result = run_tool(
        'fetch_weights', 'Ti', '--no-probe', '--from', server.url, '--folder', tmp_path
    )
    assert result.returncode == 2 and 'Traceback' not in result.stderr
    assert result.stderr.splitlines()[-1].startswith('fetch_weights.py: error: http')
    assert names(tmp_path) == []
