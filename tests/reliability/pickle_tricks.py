"""Pickles that no honest program writes: code to run, sizes to believe, names that mislead.

They are put together from opcodes, since Python's pickler writes few of them.
"""

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclass(frozen=True)
class Call:
    function: object
    args: object = ()


@dataclass(frozen=True)
class New:
    kind: object
    args: object = ()


@dataclass(frozen=True)
class Build:
    item: object
    state: object


@dataclass(frozen=True)
class Storage:
    """A reference to a storage, as torch writes it; `pid` replaces the whole of it."""

    numel: object = 8
    key: object = '0'
    kind: object = Global('torch', 'FloatStorage')
    place: object = 'cpu'
    pid: object = None


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    code: bytes


def encode(value):
    """Return the opcodes that push a value, of pickle's protocol 2."""
    if isinstance(value, Raw):
        return value.code
    if isinstance(value, Global):
        return f'c{value.module}\n{value.name}\n'.encode()
    if isinstance(value, Call):
        return encode(value.function) + encode(value.args) + b'R'
    if isinstance(value, New):
        return encode(value.kind) + encode(value.args) + b'\x81'
    if isinstance(value, Build):
        return encode(value.item) + encode(value.state) + b'b'
    if isinstance(value, Storage):
        usual = ('storage', value.kind, value.key, value.place, value.numel)
        return encode(usual if value.pid is None else value.pid) + b'Q'
    if value is None or isinstance(value, bool):
        return {None: b'N', True: b'\x88', False: b'\x89'}[value]
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return b'J' + struct.pack('<i', value)
        size = value.bit_length() // 8 + 1
        return b'\x8a' + bytes([size]) + value.to_bytes(size, 'little', signed=True)
    if isinstance(value, float):
        return b'G' + struct.pack('>d', value)
    if isinstance(value, str):
        text = value.encode('utf-8', 'surrogatepass')
        return b'X' + struct.pack('<I', len(text)) + text
    if isinstance(value, bytes):
        return encode(Call(Global('_codecs', 'encode'), (value.decode('latin1'), 'latin1')))
    if isinstance(value, tuple):
        return b'(' + b''.join(map(encode, value)) + b't'
    if isinstance(value, list):
        return b'](' + b''.join(map(encode, value)) + b'e'
    if isinstance(value, dict):
        return b'}(' + b''.join(encode(k) + encode(v) for k, v in value.items()) + b'u'
    raise TypeError(value)


# A pair of a pair of ... the same pair: 2^60 leaves, which hashing goes through.
DOUBLED = Raw(b'(' + encode('x') + b't' + b'q\x08h\x08\x86' * 60)
HUGE = (3 << 30, 1 << 40, (1 << 62) + 1)  # bytes, or elements of one byte
ORDERED = Call(Global('collections', 'OrderedDict'))
REBUILD = Global('torch._utils', '_rebuild_tensor_v2')
NDARRAY, DTYPE = Global('numpy', 'ndarray'), Global('numpy', 'dtype')


def tensor(size, stride, offset=0, storage=None, hooks=ORDERED):
    storage = Storage() if storage is None else storage
    return Call(REBUILD, (storage, offset, size, stride, False, hooks))


def dtype(kind):
    return Call(DTYPE, (kind, False, True))


def array(shape, kind='f8', data=b'', flags=0, version=1):
    made = Call(Global('numpy._core.multiarray', '_reconstruct'), (NDARRAY, (0,), b'b'))
    state = (3, '<', None, None, None, -1, -1, flags)
    return Build(made, (version, shape, Build(dtype(kind), state), False, data))


def running_code(marker):
    """Return values whose making runs code that makes a folder, by name."""
    shell = f'mkdir {marker}'
    python = f'__import__("os").mkdir({str(marker)!r})'
    getter = Global('builtins', 'getattr')
    history = Global('mmengine.logging.history_buffer', 'HistoryBuffer')
    from_v2 = Global('torch._tensor', '_rebuild_from_type_v2')
    calls = {
        'os.system': (Global('os', 'system'), (shell,)),
        'posix.system': (Global('posix', 'system'), (shell,)),
        'nt.system': (Global('nt', 'system'), (shell,)),
        'os.mkdir': (Global('os', 'mkdir'), (str(marker),)),
        'subprocess.call': (Global('subprocess', 'call'), (['mkdir', str(marker)],)),
        'subprocess.Popen': (Global('subprocess', 'Popen'), (['mkdir', str(marker)],)),
        'builtins.eval': (Global('builtins', 'eval'), (python,)),
        'builtins.exec': (Global('builtins', 'exec'), (python,)),
        '__builtin__.eval': (Global('__builtin__', 'eval'), (python,)),
        'builtins.__import__': (Global('builtins', '__import__'), ('antigravity',)),
        'builtins.open': (Global('builtins', 'open'), (str(marker), 'w')),
        'io.open': (Global('io', 'open'), (str(marker), 'w')),
        'builtins.map': (Global('builtins', 'map'), (Global('os', 'mkdir'), [str(marker)])),
        'runpy': (Global('runpy', '_run_code'), (python, {})),
        'timeit': (Global('timeit', 'timeit'), (python,)),
        'pdb': (Global('pdb', 'run'), (python,)),
        'code': (Global('code', 'interact'), ()),
        'webbrowser': (Global('webbrowser', 'open'), ('http://localhost:1',)),
        'ctypes': (Global('ctypes', 'CDLL'), ('libc.so.6',)),
        'pickle.loads': (Global('pickle', 'loads'), (b'cos\nsystem\n.',)),
        'torch.load': (Global('torch', 'load'), (str(marker),)),
        'torch.save': (Global('torch', 'save'), ([], str(marker))),
        'torch.jit.load': (Global('torch.jit', 'load'), (str(marker),)),
        'torch.hub.load': (Global('torch.hub', 'load'), (str(marker), 'x')),
        'torch.compile': (Global('torch', 'compile'), (Global('os', 'mkdir'),)),
        'torch.ops': (Global('torch.ops', 'load_library'), (str(marker),)),
        'torch.utils cpp': (Global('torch.utils.cpp_extension', 'load'), ('x', [str(marker)])),
        'torch.distributed rpc': (Global('torch.distributed.rpc', 'rpc_sync'), ('x', 'y')),
        'torch storage file': (Global('torch.storage', 'UntypedStorage.from_file'), (str(marker),)),
        'torch _load_from_bytes': (Global('torch.storage', '_load_from_bytes'), (b'x',)),
        'numpy.load': (Global('numpy', 'load'), (str(marker),)),
        'numpy runstring': (Global('numpy.testing', 'rundocs'), (str(marker),)),
        'numpy fromfile': (Global('numpy', 'fromfile'), (str(marker),)),
        'functools.partial': (Global('functools', 'partial'), (Global('os', 'mkdir'),)),
        'operator.methodcaller': (Global('operator', 'methodcaller'), ('mkdir', str(marker))),
        'mmengine build': (Global('mmengine.config', 'Config.fromstring'), (python, '.py')),
        'our own tool': (Global('contnet_mm.utils.files', 'write_file'), (str(marker), 'x')),
        'getattr of os': (getter, (Global('os', 'path'), 'os')),
        'getattr chain': (getter, (getter, '__self__')),
        'getattr of a class': (getter, (history, '__init__')),
        'getattr globals': (Call(getter, (history, 'mean')), ()),
        'getattr builtins': (getter, (Global('builtins', 'set'), '__class__')),
        'dotted name': (Global('collections', 'OrderedDict.__class__'), ('x', (), {})),
        'name with a dot': (Global('builtins', 'getattr.__self__'), ()),
        'copyreg': (Global('copyreg', '_reconstructor'), (history, Global('builtins', 'object'))),
        'rebuild calls eval': (from_v2, (Global('builtins', 'eval'), None, (python,), {})),
        'wrapper subclass': (Global('torch._utils', '_rebuild_wrapper_subclass'), (history,)),
        'hooks call': (REBUILD, (Storage(), 0, (2,), (1,), False, Global('os', 'system'))),
    }
    values = {name: Call(*call) for name, call in calls.items()}
    values['new object'] = New(Global('subprocess', 'Popen'), (['mkdir', str(marker)],))
    values['global alone'] = Global('os', 'system')
    values['inst opcode'] = Raw(b'(' + encode(str(marker)) + b'ios\nmkdir\n')
    values['obj opcode'] = Raw(b'(' + encode(Global('os', 'mkdir')) + encode(str(marker)) + b'o')
    values['stack global'] = Raw(
        encode('os') + encode('mkdir') + b'\x93' + encode((str(marker),)) + b'R'
    )
    values['extension'] = Raw(b'\x82\x01')
    values['text persistent id'] = Raw(b'Pmodule\n')
    values['module as a storage'] = Storage(pid=('module', Global('os', 'system'), 'a.py', 'x'))
    values['code as a storage kind'] = Storage(kind=Global('os', 'system'))
    values['storage of a place'] = Storage(place=f'cuda:0; {shell}')
    values['build on a class'] = Build(history, {'mean': Global('os', 'system')})
    values['build on a function'] = Build(REBUILD, {'__wrapped__': 1})
    values['setstate of a history'] = Build(
        New(history), {'_statistics_methods': {'x': Global('os', 'system')}}
    )
    return values


def bombs():
    """Return small values that ask for much memory or time, by name."""
    values = {}
    for size in HUGE:
        few = size // 4
        values |= {
            f'bytearray {size}': Call(Global('builtins', 'bytearray'), (size,)),
            f'tensor {size}': Call(Global('torch', 'FloatTensor'), (few,)),
            f'long storage {size}': tensor((few,), (1,), storage=Storage(few)),
            f'long tensor {size}': tensor((few,), (1,)),
            f'stretched tensor {size}': tensor((few,), (0,)),
            f'stretched matrix {size}': tensor((few, 4), (0, 1)),
            f'far offset {size}': tensor((2,), (1,), offset=few),
            f'long stride {size}': tensor((2,), (few,)),
            f'negative offset {size}': tensor((2,), (1,), offset=-size),
            f'negative size {size}': tensor((-size,), (1,)),
            f'huge product {size}': tensor((size, size), (0, 0)),
            f'array {size}': Call(NDARRAY, ((size,), 'b')),
            f'array of objects {size}': Call(NDARRAY, ((size // 8,), dtype('O8'))),
            f'array state {size}': array((size // 8,)),
            f'reconstructed array {size}': Call(
                Global('numpy._core.multiarray', '_reconstruct'), (NDARRAY, (size,), b'b')
            ),
            f'text type {size}': dtype(f'U{size // 4}'),
            f'converted tensor {size}': Call(
                Global('torch._utils', '_rebuild_device_tensor_from_cpu_tensor'),
                (tensor((size // 8,), (0,)), Global('torch', 'float64'), 'cpu', False),
            ),
            f'set of rows {size}': Call(
                Global('builtins', 'set'), (tensor((min(few, 1 << 25),), (0,)),)
            ),
            f'meta tensor {size}': Call(
                Global('torch._utils', '_rebuild_meta_tensor_no_storage'),
                (Global('torch', 'float32'), (few,), (1,), False),
            ),
            f'sparse tensor {size}': Call(
                Global('torch._utils', '_rebuild_sparse_tensor'),
                (
                    Call(Global('torch.serialization', '_get_layout'), ('torch.sparse_coo',)),
                    (tensor((1, 1), (1, 1)), tensor((1,), (1,)), (few,)),
                ),
            ),
        }
    doubled = DOUBLED.code
    values |= {
        'declared text': Raw(b'X\xff\xff\xff\x7f'),
        'declared bytes': Raw(b'B\xff\xff\xff\x7f'),
        'declared long bytes': Raw(b'\x8e' + struct.pack('<Q', 1 << 62)),
        'declared number': Raw(b'\x8b\xff\xff\xff\x7f'),
        'memo far out': Raw(b'Nr\xff\xff\xff\xff'),
        'memo not there': Raw(b'j\xff\xff\xff\x7f'),
        'text of the memo': Raw(encode('x' * 1000) + b'q\x00' + b'h\x00' * 5000 + b'0' * 5000),
        'pairs of pairs': Raw(doubled),
        'pairs of pairs as a key': Raw(b'}' + doubled + b'Ns'),
        'pairs of pairs in a set': Call(Global('builtins', 'set'), ([Raw(doubled)],)),
        'many marks': Raw(b'(' * 300_000),
        'deep lists': Raw(b']' * 200_000 + b'a' * 199_999),
        'deep tuples': Raw(b'N' + b'\x85' * 200_000),
        'deep tuples as a key': Raw(b'}' + b'N' + b'\x85' * 200_000 + b'Ns'),
        'deep dicts': Raw((b'}' + encode('state_dict')) * 20_000 + b'}' + b's' * 20_000),
        'deep models': Raw((b'}' + encode('model')) * 900 + b'}' + b's' * 900),
        'list in itself': Raw(b']q\x07h\x07a'),
        'dict in itself': Raw(b'}q\x07' + encode('state_dict') + b'h\x07s'),
        'model in itself': Raw(b'}q\x07' + encode('model') + b'h\x07s'),
        'sizes of a tensor': Call(Global('torch', 'Size'), ((1 << 62, 1 << 62),)),
        'no stop': Raw(b''),
        'empty stack': Raw(b'0' * 50),
        'wrong arguments': Call(REBUILD, (1, 2)),
        'arguments that are none': Call(REBUILD, None),
        'size as text': tensor('ab', (1,)),
        'size as floats': tensor((2.5,), (1.0,)),
        'size without stride': tensor((2, 2), (1,)),
        'bits in a tensor': Call(REBUILD, (Storage(), 0, (2,), (1,), 7, ORDERED, {'conj': True})),
        'storage of another kind': tensor((2,), (1,), storage=Storage(numel='many')),
        'storage of floats': tensor((2,), (1,), storage=Storage(numel=2.5)),
        'storage below zero': tensor((2,), (1,), storage=Storage(numel=-8)),
        'storage of no key': tensor((2,), (1,), storage=Storage(key='../../data.pkl')),
        'storage of data.pkl': tensor((2,), (1,), storage=Storage(key='/../data.pkl')),
        'storage number': Storage(pid=7),
        'storage of nothing': Storage(pid=()),
        'storage by bytes': Storage(pid=(b'storage', None, None, None, None)),
        'array with object flags': array((1,), 'U1', b'\1\0\0\0', flags=63),
        'array of objects': array((2,), 'O8', [1]),
        'array of odd version': array((1,), 'f8', b'12345678', version=9),
        'short array': array((9,), 'f8', b'12345678'),
        'scalar of objects': Call(
            Global('numpy._core.multiarray', 'scalar'), (dtype('O8'), b'cos\nsystem\n.')
        ),
        'short scalar': Call(Global('numpy._core.multiarray', 'scalar'), (dtype('f8'), b'1')),
        'attribute of a tensor': Call(
            Global('torch._tensor', '_rebuild_from_type_v2'),
            (
                REBUILD,
                Global('torch', 'Tensor'),
                (Storage(), 0, (2,), (1,), False, ORDERED),
                {
                    'dim': 5,
                    'is_floating_point': Global('builtins', 'set'),
                    'shape': (2,),
                },
            ),
        ),
        'codec': Call(Global('_codecs', 'encode'), ('x', 'zlib')),
        'codec of a module': Call(Global('_codecs', 'encode'), ('x', '../../antigravity')),
    }
    return values


def harmless():
    """Return values that an honest program may write, by name: files with them have to load."""
    return {
        'nothing': None,
        'text': 'text \ud800',
        'bytes': b'\0\xff',
        'numbers': [1, -(2**70), 1.5, True, (2, 3)],
        'mapping': {1: {'a': ('b',)}, ('a', 1): 2},
        'ordered': Build(ORDERED, {'_metadata': {}}),
        'tensor': tensor((2, 2), (2, 1)),
        'stretched tensor': tensor((2, 2), (0, 1)),
        'array': array((1,), 'f8', b'12345678'),
        'texts': dtype('U8'),
        'set': Call(Global('builtins', 'set'), ([1, 'a'],)),
        'bytearray': Call(Global('builtins', 'bytearray'), ('a', 'latin-1')),
        'device': Call(Global('torch', 'device'), ('cpu',)),
        'size': Call(Global('torch', 'Size'), ((1, 2),)),
        'parameter': Call(Global('torch._utils', '_rebuild_parameter'), (
            tensor((2,), (1,)), True, ORDERED,
        )),
    }  # fmt: skip


# Attributes that hide methods of the mapping they are set on.
HIDING = [
    {'get': 5, 'items': 5},
    {'items': Global('collections', 'OrderedDict')},
    {'keys': None, '__iter__': None, 'values': 1},
    {'_metadata': 5},
    {'_metadata': {'': 5, 7: {}}},
    {'_metadata': {'': {'contnet': 5}}},
    {'_metadata': {'': {'contnet': {'options': {'pre_norm': True}, 'geometry': 5}}}},
    {'_metadata': {'': {'contnet': {'options': {'position': [1], 'avg_down': 'x' * 9999}}}}},
    {
        '_metadata': {
            '': {'contnet': {'geometry': {'window_sizes': Raw(b']' * 9999 + b'a' * 9998)}}}
        }
    },
    {'_metadata': {'': {'contnet': {'geometry': {'strides': Raw(b']q\x07h\x07a')}}}}},
    {'__class__': 5},
    {'__dict__': {}},
    5,
]
