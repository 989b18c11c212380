"""Checkpoint files that are damaged or forged, made from a few good ones by a seed."""

import gzip
import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save as save_safetensors

from contnet_mm import ConTNet
from contnet_mm.checkpoint.official_keys import convert_to_official
from tests.reliability.archives import (
    StorageFinder,
    make_tar,
    pack,
    pickle_name,
    point,
    split_legacy,
    tar_of_size,
    write_bomb,
)
from tests.reliability.pickle_tricks import (
    HIDING,
    HUGE,
    Storage,
    bombs,
    encode,
    harmless,
    running_code,
)

ARCH = dict(
    base_channels=8,
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 2, 4),
    feedforward_channels=(8, 8, 8, 8),
    window_sizes=((2, 4), (2, 4), (2, 4), (2, 2)),
    drop_rates=(0.0,) * 4,
    last_drop_rate=0.0,
)
DTYPES = [getattr(torch, name) for name in sorted(dir(torch))]
DTYPES = [value for value in DTYPES if isinstance(value, torch.dtype)]


def make_net(relative=False):
    return ConTNet(ARCH, position='relative' if relative else 'absolute')


def save(content, legacy=False):
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def good_contents():
    """Return contents of good checkpoints by name; those of 'relative' are for such a network."""
    torch.manual_seed(0)
    net, relative = make_net(), make_net(relative=True)
    for tensor in [*net.state_dict().values(), *relative.state_dict().values()]:
        if tensor.is_floating_point():
            tensor.normal_()
    ours = net.state_dict()
    official = convert_to_official(ours)
    official['fc.weight'], official['fc.bias'] = torch.randn(5, 128), torch.randn(5)
    whole = OrderedDict((f'backbone.{key}', value) for key, value in ours.items())
    whole['head.fc.weight'] = torch.randn(3, 128)
    whole['head.fc.bias'] = torch.randn(3)
    history = HistoryBuffer([1.0, 2.0], [1, 1], 10)
    runner = dict(
        meta=dict(epoch=1, iter=4, seed=2**31 - 1, dataset_meta=dict(classes=('a', 'b'))),
        state_dict=whole,
        message_hub=dict(log_scalars={'train/loss': history}, resumed_keys={'train/loss': True}),
        optimizer=dict(state={0: dict(step=torch.tensor(3.0))}, param_groups=[dict(lr=0.1)]),
    )
    return {
        'ours': ours,
        'runner': runner,
        'official': {'model': official, 'epoch': 7},
        'relative': {'state_dict': relative.state_dict(), 'meta': {}},
    }


class Bases:
    """The good files, as bytes by name; ``members`` are those of the archives."""

    def __init__(self):
        self.contents = good_contents()
        self.files = {name: save(content) for name, content in self.contents.items()}
        self.files['legacy'] = save(self.contents['runner'], legacy=True)
        plain = {key: value.contiguous() for key, value in self.contents['ours'].items()}
        self.files['safetensors'] = save_safetensors(plain)
        self.zips = [name for name, data in self.files.items() if data[:2] == b'PK']

        self.legacy = split_legacy(self.files['legacy'])
        finder = StorageFinder(io.BytesIO(self.legacy[3]))
        finder.load()
        # The first of float32, as the persistent id that names it.
        self.legacy_storage = finder.found

    def members(self, name):
        with zipfile.ZipFile(io.BytesIO(self.files[name])) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist()}


class Mutants:
    """A sequence of damaged files: ``make(number)`` is always the same for the same number.

    Args:
        marker: The folder that code in them would make.
    """

    def __init__(self, marker):
        self.bases = Bases()
        self.tricks = [*running_code(marker).items(), *bombs().items(), *harmless().items()]
        random.Random(1).shuffle(self.tricks)
        self.kinds = [
            (850, self.cut),
            (900, self.flip),
            (900, self.flip_in_pickle),
            (500, self.splice),
            (600, self.edit_members),
            (700, self.edit_tensors),
            (280, self.trick),
            (190, self.legacy_trick),
            (80, self.disguise),
        ]
        self.total = sum(count for count, _ in self.kinds)
        self.order = [kind for count, kind in self.kinds for _ in range(count)]
        # A prefix of any length has all kinds in it.
        random.Random(17).shuffle(self.order)
        seen = {}
        self.place = []  # how many of the same kind come before
        for kind in self.order:
            self.place.append(seen.get(kind.__name__, 0))
            seen[kind.__name__] = self.place[-1] + 1

    def make(self, number):
        """Return the kind of damage, the base, the suffix and the bytes of a file."""
        kind, rng = self.order[number], random.Random(number)
        torch.manual_seed(number)
        base, data = kind(rng, self.place[number])
        suffix = '.safetensors' if base.startswith('safetensors') else '.pth'
        return kind.__name__, base, suffix, data

    def cut(self, rng, place):
        names = list(self.bases.files)
        base = names[place // 100 % len(names)]
        data = self.bases.files[base]
        share = place % 100 if place < 100 * len(names) else rng.uniform(95, 100)
        return base, data[: int(len(data) * share / 100)]

    def flip(self, rng, place):
        base = rng.choice(list(self.bases.files))
        data = bytearray(self.bases.files[base])
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            # Heads and ends of files are short and tell most.
            at = rng.choice((rng.randrange(len(data)), rng.randrange(512), -rng.randrange(1, 2048)))
            data[at] ^= 1 << rng.randrange(8)
        return base, bytes(data)

    def flip_in_pickle(self, rng, place):
        """Flip bits in the pickle of an archive, whose checksums are made anew."""
        base = rng.choice(self.bases.zips)
        members = self.bases.members(base)
        name = pickle_name(members)
        code = bytearray(members[name])
        for _ in range(rng.choice((1, 1, 1, 3))):
            at = rng.randrange(len(code))
            code[at] = rng.choice((code[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
        members[name] = bytes(code)
        return base, pack(members)

    def splice(self, rng, place):
        """Remove, repeat, zero, move or insert runs of bytes, or mix two files."""
        base = rng.choice(list(self.bases.files))
        data = self.bases.files[base]
        a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        b = min(b, a + rng.choice((1, 4, 64, 4096, len(data))))
        other = self.bases.files[rng.choice(list(self.bases.files))]
        return base, rng.choice(
            (
                data[:a] + data[b:],
                data[:b] + data[a:],
                data[:a] + bytes(b - a) + data[b:],
                data[:a] + rng.randbytes(min(b - a, 4096)) + data[b:],
                data[:a] + other[a:],
                data + other,
                other + data,
                data + bytes(rng.randrange(1, 2000)),
                bytes(rng.randrange(1, 2000)) + data,
                data[:a] + rng.randbytes(rng.randrange(1, 64)) + data[a:],
            )
        )

    def edit_members(self, rng, place):
        base = rng.choice(self.bases.zips)
        members = self.bases.members(base)
        names = list(members)
        one, two = rng.sample(names, 2)
        edits = (
            self._swap,
            self._drop,
            self._rename,
            self._empty,
            self._double,
            self._other_folder,
            self._shorten,
            self._lengthen,
            self._deflate,
            self._bomb,
            self._claim,
            self._code,
        )
        return base, edits[place % len(edits)](rng, members, one, two)

    def _swap(self, rng, members, one, two):
        members[one], members[two] = members[two], members[one]
        return pack(members)

    def _drop(self, rng, members, one, two):
        del members[one]
        return pack(members)

    def _rename(self, rng, members, one, two):
        new = rng.choice((two, f'{one}0', 'data.pkl', '../' + one, one.upper(), '', '/', 'a\0b'))
        return pack([(new if name == one else name, data) for name, data in members.items()])

    def _empty(self, rng, members, one, two):
        members[one] = b''
        return pack(members)

    def _double(self, rng, members, one, two):
        return pack([*members.items(), (one, members[two])])

    def _other_folder(self, rng, members, one, two):
        return pack([(f'other/{one}' if name == one else name, d) for name, d in members.items()])

    def _shorten(self, rng, members, one, two):
        members[one] = members[one][: rng.randrange(len(members[one]) + 1)]
        return pack(members)

    def _lengthen(self, rng, members, one, two):
        members[one] += rng.randbytes(rng.choice((1, 4, 1000)))
        return pack(members)

    def _deflate(self, rng, members, one, two):
        return pack(members, zipfile.ZIP_DEFLATED)

    def _bomb(self, rng, members, one, two):
        head = pickle_name(members)
        return write_bomb(members, rng.choice((head, '/data/0', one)))

    def _claim(self, rng, members, one, two):
        """Claim other sizes, offsets or checksums of a member than there are."""
        data = bytearray(pack(members))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            at = archive.start_dir
        for _ in range(list(members).index(one)):
            at += 46 + sum(struct.unpack_from('<3H', data, at + 28))
        field = rng.choice((8, 10, 16, 20, 24, 28, 30, 32, 42))
        value = rng.choice((0, 1, 255, 65535, 3 << 30, 0xFFFFFFFF, rng.getrandbits(32)))
        size = 2 if field in (8, 10, 28, 30, 32) else 4
        struct.pack_into('<H' if size == 2 else '<I', data, at + field, value % (1 << 8 * size))
        return bytes(data)

    def _code(self, rng, members, one, two):
        """Files that torch looks for by their names."""
        folder = one.partition('/')[0]
        name = rng.choice(('constants.pkl', 'code/__torch__.py', 'version', 'byteorder'))
        for extra in (name, '.format_version', '.storage_alignment'):
            members[f'{folder}/{extra}'] = rng.choice((b'', b'1', b'big', b'99999999999', b'\xff'))
        return pack(members)

    def edit_tensors(self, rng, place):
        """Save other tensors, keys and values, as an honest program would."""
        base = rng.choice(list(self.bases.contents))
        content = dict(self.bases.contents[base])
        holder = content
        for key in ('state_dict', 'model'):
            if key in content:
                holder = content[key] = OrderedDict(content[key])
                metadata = getattr(self.bases.contents[base][key], '_metadata', None)
                if metadata is not None:
                    holder._metadata = metadata
        keys = [key for key in holder if torch.is_tensor(holder[key])]
        for _ in range(rng.choice((1, 1, 2, 5))):
            key = rng.choice(keys)
            if key in holder and torch.is_tensor(holder[key]):
                self._edit_tensor(rng, holder, key)
        legacy = rng.random() < 0.2
        try:
            return base, save(content, legacy)
        except (RuntimeError, AttributeError, NotImplementedError, TypeError):
            return base, save(content)  # the old format has no place for every kind

    def _edit_tensor(self, rng, holder, key):
        x = holder[key]
        edits = (
            lambda: x.to(rng.choice(DTYPES)),
            lambda: x.to(rng.choice(DTYPES)),
            lambda: x.t() if x.dim() == 2 else x.flatten(),
            lambda: x[None],
            lambda: x[..., None],
            lambda: x[:0] if x.dim() else x,
            lambda: x.flatten()[0] if x.numel() else x,
            lambda: torch.cat([x, x]) if x.dim() else x,
            lambda: x.new_zeros(1).expand(x.shape),
            lambda: x.new_zeros(1).expand(1000, *x.shape),
            lambda: x.new_zeros(1, x.shape[-1]).expand(10**9, -1) if x.dim() else x,
            lambda: x.new_zeros(1).as_strided((3 << 28,), (0,)),
            lambda: x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x,
            lambda: torch.full_like(x, float('nan')) if x.is_floating_point() else x,
            lambda: torch.full_like(x, float('inf')) if x.is_floating_point() else x,
            lambda: x.to_sparse(),
            lambda: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
            lambda: x.to('meta'),
            lambda: torch.nn.Parameter(x) if x.is_floating_point() else x,
            lambda: torch.nested.nested_tensor([x.float(), x.float()]),
            lambda: x.to(torch.complex64) * 1j,
            lambda: x.detach().numpy() if x.dtype not in (torch.bfloat16,) else None,
            lambda: None,
            lambda: [1, 2],
            lambda: 'text',
            lambda: {'weight': x},
            lambda: float('nan'),
            lambda: HistoryBuffer([1.0], [1], 5),
        )
        try:
            value = rng.choice(edits)()
        except (RuntimeError, NotImplementedError, IndexError, TypeError):
            value = None
        how = rng.random()
        if how < 0.7:
            holder[key] = value
        elif how < 0.8:
            del holder[key]
        else:
            new = rng.choice(
                (f'{key}2', f'module.{key}', key.upper(), key.replace('.0.', '.7.'), '', '.',
                 key + '\n', 'x' * 10**6, 'backbone.backbone.' + key, 'state_dict', 7, 'fc.weight',
                 key.replace('stages', 'stages.0'), 'layer1.ConTBlock0.gate', 'backbone.')
            )  # fmt: skip
            holder[new] = holder.pop(key) if rng.random() < 0.5 else holder[key]

    def trick(self, rng, place):
        """Put a forged value into a good file, or make it all that a file holds."""
        name, value = self.tricks[place % len(self.tricks)]
        base = rng.choice(self.bases.zips)
        members = self.bases.members(base)
        code = members[pickle_name(members)]
        way = rng.randrange(6)
        if place % 17 == 16:
            value = rng.choice(HIDING)
            way = 3
        if way in (0, 1):
            key = rng.choice(('zzz', 'state_dict', 'meta', 'message_hub', 'model', 5, None))
            if way:
                content = self.bases.contents[base]
                inner = content.get('state_dict', content.get('model', content))
                key = rng.choice([*inner])
            new = code[:-1] + encode(key) + encode(value) + b's.'
        elif way == 2:
            new = b'\x80\x02' + encode(value) + b'.'
        elif way == 3:
            new = code[:-1] + encode(value) + b'b.'
        elif way == 4:
            new = b'\x80\x02' + encode({'state_dict': {'stem.conv.weight': value}}) + b'.'
        else:  # made first, then thrown away
            new = b'\x80\x02' + encode(value) + b'0' + code[2:]
        if rng.randrange(4) == 0:
            return f'raw {name}', new
        first = next(data for member, data in members.items() if member.endswith('/data/0'))
        members[pickle_name(members)] = point(new, Storage(numel=len(first) // 4))
        return base, pack(members)

    def legacy_trick(self, rng, place):
        """Do the same to a file in torch's old format."""
        name, value = self.tricks[place % len(self.tricks)]
        *heads, code, rest = self.bases.legacy
        inner = [*self.bases.contents['runner']['state_dict']]
        key = rng.choice(('zzz', 'state_dict', 'meta', *inner[:5]))
        new = rng.choice(
            (
                code[:-1] + encode(key) + encode(value) + b's.',
                code[:-1] + encode(value) + b'b.',
                b'\x80\x02' + encode(value) + b'0' + code[2:],
            )
        )
        new = point(new, Storage(pid=self.bases.legacy_storage))
        if rng.random() < 0.1:  # without some of what the tensors are in
            rest = pickle.dumps([], 2) + rest
        return f'legacy {name}', b''.join([*heads, new, rest])

    def disguise(self, rng, place):
        """Files of another kind under the name of a checkpoint."""
        good = self.bases.files['ours']
        makers = (
            lambda: b'',
            lambda: b'\x80',
            lambda: bytes(512),
            lambda: bytes(100_000),
            lambda: b'PK\3\4' + bytes(100),
            lambda: b'PK\5\6' + bytes(18),
            lambda: good[:-22] + b'PK\5\6' + bytes(18),
            lambda: good + b'PK\5\6',
            lambda: good[:-2] + b'\xff\xff',
            lambda: b'<html><body>no</body></html>',
            lambda: rng.randbytes(5000),
            lambda: b'\x89PNG\r\n\x1a\n' + rng.randbytes(500),
            lambda: b'\x1f\x8b' + rng.randbytes(500),
            lambda: gzip.compress(good),
            lambda: make_tar({'storages': rng.randbytes(700), 'tensors': b'1', 'pickle': b'2'}),
            lambda: make_tar({'storages': good}, 'w:gz'),
            lambda: tar_of_size(rng.choice(HUGE)),
            lambda: gzip.compress(tar_of_size(3 << 30) + bytes(1 << 28)),
            lambda: tar_of_size(rng.choice(HUGE))[:512] + good,
            lambda: pack({'archive/readme': b'text'}),
            lambda: pack({'archive/data.pkl': encode({'a': 1}) + b'.'}),
            lambda: pack({'data.pkl': b'\x80\x02}.'}),
            lambda: pack({f'a/{i}': b'' for i in range(5000)}),
            lambda: np.zeros(9).tobytes(),
        )  # fmt: skip
        return f'disguise {place % len(makers)}', makers[place % len(makers)]()
