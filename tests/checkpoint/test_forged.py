"""Files that torch alone would believe: sizes, checksums and names that are not true."""

import io
import pickle
import struct
import zipfile

import pytest
import torch

from contnet_mm.apis.convert import read_network
from contnet_mm.apis.publish import publish_checkpoint
from contnet_mm.checkpoint.read import read_checkpoint
from tests.reliability import pickle_tricks as tricks
from tests.reliability.archives import pack, pickle_name, point, tar_of_size, write_bomb
from tests.reliability.checkpoint_mutants import Bases, make_net
from tests.reliability.pickle_tricks import Build, Call, Global, Raw, Storage, encode

bases = Bases()
BYTEARRAY = Global('builtins', 'bytearray')


def archive(value, key='zzz'):
    """Return a good archive with one forged value in it; Storage() in it is the first one."""
    members = bases.members('runner')
    name = pickle_name(members)
    code = members[name][:-1] + encode(key) + encode(value) + b's'
    members[name] = _point(members, code + b'.')
    return pack(members)


def alone(value):
    """Return an archive that holds nothing but a value."""
    members = bases.members('runner')
    members[pickle_name(members)] = b'\x80\x02' + encode(value) + b'.'
    return pack(members)


def _point(members, code):
    first = next(data for name, data in members.items() if name.endswith('/data/0'))
    return point(code, Storage(numel=len(first) // 4))


def legacy(value):
    *heads, code, rest = bases.legacy
    code = point(
        code[:-1] + encode('zzz') + encode(value) + b's.', Storage(pid=bases.legacy_storage)
    )
    return b''.join([*heads, code, rest])


def flipped():
    """Return a good archive with one bit of a weight flipped."""
    data = bytearray(bases.files['ours'])
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        info = next(info for info in file.infolist() if info.filename.endswith('/data/0'))
    at = info.header_offset + 30 + sum(struct.unpack_from('<2H', data, info.header_offset + 26))
    data[at + 3] ^= 64
    return bytes(data)


def state(**changes):
    """Return a file in whose state dict some values are others."""
    content = {**bases.contents['ours'], **{k.replace('__', '.'): v for k, v in changes.items()}}
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def extra_field():
    data = bytearray(pack(bases.members('ours')))
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        struct.pack_into('<H', data, file.start_dir + 30, 65535)
    return bytes(data)


def lost_storages():
    *heads, code, rest = bases.legacy
    return b''.join([*heads, code, pickle.dumps([], 2), rest])


FIRST = Storage(bases.contents['runner']['state_dict']['backbone.stem.conv.weight'].numel())
WEIGHT = bases.contents['ours']['stages.0.0.norm.weight']
PAIRS = Raw(b'}' + tricks.DOUBLED.code + b'Ns')
# What is done, and what the error says.
FORGED = {
    'a bit of a weight': (flipped, 'Bad CRC-32'),
    'broken list of members': (extra_field, 'damaged'),
    'zip bomb': (lambda: write_bomb(bases.members('ours'), 'data/0'), 'unpack to 322.* bytes'),
    'two members of a name': (
        lambda: pack([*bases.members('ours').items(), *bases.members('ours').items()]),
        'there twice',
    ),
    'an archive behind an archive': (
        lambda: bases.files['relative'] + bases.files['ours'],
        'not where it should be|there twice|damaged',
    ),
    'tensor beyond its storage': (
        lambda: archive(tricks.tensor((1 << 20,), (1,))),
        r'asks for a tensor of size \(1048576,\)',
    ),
    'stretched tensor': (
        lambda: archive(tricks.tensor((1 << 30,), (0,))),
        'asks for tensors of 4295.* bytes out of',
    ),
    'storage of another size': (
        lambda: alone(tricks.tensor((2,), (1,), storage=Storage(3))),
        'storage 0 is 12 bytes by its name',
    ),
    'storages that are not there': (lost_storages, 'does not hold the storages'),
    'bytes without content': (
        lambda: archive(Call(BYTEARRAY, (3 << 30,))),
        r'asks for a call of builtins.bytearray with \(3221225472,\)',
    ),
    'bytes without content in the old format': (
        lambda: legacy(Call(BYTEARRAY, (3 << 30,))),
        'asks for a call of builtins.bytearray',
    ),
    'key that takes for ever': (lambda: archive(PAIRS), 'asks for a key of tuple'),
    'state dict in itself': (
        lambda: archive(Raw(b'}q\x07' + encode('state_dict') + b'h\x07s'), 'state_dict'),
        'asks for containers in themselves',
    ),
    'deep state dict': (
        lambda: archive(Raw((b'}' + encode('model')) * 900 + b'}' + b's' * 900), 'model'),
        'or more than 100 deep',
    ),
    'attribute in place of a method': (
        lambda: archive(Build(tricks.ORDERED, {'get': 5, 'items': 5}), 'state_dict'),
        'asks for attributes of OrderedDict',
    ),
    'sparse tensor': (
        lambda: state(stages__0__0__norm__weight=WEIGHT.to_sparse()),
        'asks for a call of torch',
    ),
    'tensor without memory': (
        lambda: state(stages__0__0__norm__weight=WEIGHT.to('meta')),
        'asks for a call of torch',
    ),
    'tar archive of any size': (lambda: tar_of_size(3 << 30) + bytes(512), 'tar archive'),
    'key of a million letters': (
        lambda: alone({'layer0.' + 'x' * 10**6: tricks.tensor((1,), (1,), storage=FIRST)}),
        r'xxx\.\.\.',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', list(FORGED))
def test_forged_files_are_refused_and_change_nothing(tmp_path, name):
    make, words = FORGED[name]
    file = tmp_path / 'forged.pth'
    file.write_bytes(make())
    net = make_net()
    net.init_cfg = dict(type='Pretrained', checkpoint=str(file))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=words) as error:
        net.init_weights()
    assert str(file) in str(error.value) and len(str(error.value)) < 4000
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize('make', [archive, legacy])
@pytest.mark.parametrize('name', list(tricks.harmless()))
def test_what_an_honest_program_writes_is_read(tmp_path, make, name):
    file = tmp_path / 'honest.pth'
    file.write_bytes(make(tricks.harmless()[name]))
    content = read_checkpoint(file)
    assert 'zzz' in content
    assert torch.equal(
        content['state_dict']['head.fc.bias'],
        bases.contents['runner']['state_dict']['head.fc.bias'],
    )


def test_an_archive_that_was_packed_again_is_read(tmp_path):
    file = tmp_path / 'again.pth'
    file.write_bytes(pack(bases.members('ours'), zipfile.ZIP_DEFLATED))
    assert torch.equal(read_checkpoint(file)['stages.0.0.norm.weight'], WEIGHT)


def test_an_archive_without_checksums_is_read(tmp_path):
    file = tmp_path / 'none.pth'
    data = bytearray(pack(bases.members('ours')))
    with zipfile.ZipFile(io.BytesIO(data)) as members:
        at = members.start_dir
        for _ in members.infolist():
            struct.pack_into('<L', data, at + 16, 0)  # as torch writes without checksums
            at += 46 + sum(struct.unpack_from('<3H', data, at + 28))
    file.write_bytes(data)
    assert torch.equal(read_checkpoint(file)['stages.0.0.norm.weight'], WEIGHT)


def test_what_cannot_be_copied_leaves_the_network_as_it_was(tmp_path, monkeypatch):
    """Whatever torch will not copy into a parameter, another version's kinds of number too."""
    file = tmp_path / 'odd.pth'
    torch.save(bases.contents['ours'], file)
    net = make_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    content = dict(bases.contents['ours'])
    content['stages.3.0.norm.weight'] = content['stages.3.0.norm.weight'].to_sparse()
    monkeypatch.setattr('contnet_mm.checkpoint.load.read_checkpoint', lambda _: content)
    net.init_cfg = dict(type='Pretrained', checkpoint=str(file))
    with pytest.raises(ValueError, match='stages.3.0.norm.weight'):
        net.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize('rows', [torch.zeros(0, 4), torch.zeros(3, 4, dtype=torch.int64)])
def test_a_position_table_that_cannot_be_resized_is_refused(tmp_path, rows):
    file = tmp_path / 'odd.pth'
    key = 'stages.0.0.encoders.0.position.rows'
    torch.save({**bases.contents['ours'], key: rows}, file)
    net = make_net()
    net.init_cfg = dict(type='Pretrained', checkpoint=str(file))
    with pytest.raises(ValueError, match=f'1 of another kind.*{key}'):
        net.init_weights()


def test_a_file_of_no_arch_is_named(tmp_path):
    file = tmp_path / 'odd.pth'
    content = dict(bases.contents['ours'])
    content['stages.7.0.norm.weight'] = WEIGHT
    torch.save(content, file)
    with pytest.raises(ValueError, match=f'{file} is of no arch that can be built'):
        read_network(file)


def test_a_value_that_is_no_tensor_is_named_with_its_file(tmp_path):
    file = tmp_path / 'odd.pth'
    torch.save({'state_dict': {**bases.contents['ours'], 'x': 1}, 'meta': {}}, file)
    with pytest.raises(ValueError, match=f"{file}: the values of .'x'. are no tensors"):
        publish_checkpoint(file, tmp_path / 'out')


def test_an_unknown_official_key_is_named_with_its_file(tmp_path):
    file = tmp_path / 'odd.pth'
    torch.save({'layer0.gate': WEIGHT}, file)
    with pytest.raises(ValueError, match=f'{file}: 1 keys are not of the official'):
        read_network(file)
