"""Reading checkpoint files: by torch's own unpickler, and by ours, which older torch gets."""

import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from contnet_mm.checkpoint import read
from contnet_mm.checkpoint.read import read_checkpoint
from tests.helpers import RunsCode


@pytest.fixture(params=['torch', 'ours'])
def unpickler(request, monkeypatch):
    """Read by torch's unpickler where that is sound, and by ours as beside an older torch."""
    if request.param == 'ours':
        monkeypatch.setattr(read, 'SOUND_TORCH', '1000.0')
    return request.param


def replace_in_archive(path, end, content):
    """Put another content into the only file of an archive whose name ends so."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in files if name.endswith(end))
    files[name] = content(files[name])
    with zipfile.ZipFile(path, 'w') as archive:
        for other, data in files.items():
            archive.writestr(other, data)


class WithItems:
    """A tensor that the file goes on to write into."""

    def __init__(self, items):
        self.items = items

    def __reduce__(self):
        rebuild, args = torch.zeros(4).__reduce_ex__(2)
        return rebuild, args, None, None, iter(self.items)


@pytest.mark.parametrize('zipped', [True, False])
def test_what_is_allowed_comes_back_as_it_was_saved(tmp_path, unpickler, zipped):
    saved = {
        'state_dict': nn.Conv2d(2, 3, 1).state_dict(),
        'views': [torch.arange(6).view(2, 3).t(), torch.zeros(0), torch.ones(2).bfloat16()],
        'numpy': [np.arange(3.0), np.float64(2)],
        'plain': {'a': (1, 2.5, None, True), 'b': {3}, 'c': 1j, 'd': bytearray(b'e')},
    }
    file = tmp_path / 'a.pth'
    torch.save(saved, file, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(file)
    assert found['plain'] == saved['plain'] and found['numpy'][1] == 2
    assert np.array_equal(found['numpy'][0], saved['numpy'][0])
    for a, b in zip(found['views'], saved['views'], strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
    assert found['state_dict']._metadata == saved['state_dict']._metadata
    assert all(torch.equal(found['state_dict'][k], v) for k, v in saved['state_dict'].items())


@pytest.mark.parametrize('change', [lambda b: b[:8], lambda b: b'', lambda b: b * 2])
def test_a_storage_of_another_size_than_the_file_says_is_refused(tmp_path, unpickler, change):
    """Torch before 2.10 believed the size that is said, and read beyond the memory there is."""
    file = tmp_path / 'short.pth'
    torch.save({'state_dict': {'a': torch.ones(100)}}, file)
    replace_in_archive(file, 'data/0', change)
    with pytest.raises(ValueError, match='damaged.*storage 0 is 400 bytes by its name'):
        read_checkpoint(file)


@pytest.mark.parametrize('items', [[(0, 1.0)], [(0, 1.0), (1, 2.0)]], ids=['one', 'several'])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_cannot_write_into_a_tensor(tmp_path, unpickler, items, zipped):
    file = tmp_path / 'items.pth'
    torch.save({'a': WithItems(items)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match='refused|damaged'):
        read_checkpoint(file)


@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_file_does_not_run(tmp_path, unpickler, zipped):
    file, marker = tmp_path / 'code.pth', tmp_path / 'ran'
    torch.save({'a': RunsCode(marker)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match='refused.*mkdir'):
        read_checkpoint(file)
    assert not marker.exists()
