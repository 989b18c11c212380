"""Configs with one thing or a few wrong, by values and keys and by their text."""

import copy
import random

from contnet_mm.apis.config import read_config
from contnet_mm.swap.edit import find_value, walk
from contnet_mm.swap.text.difference import to_plain

BASES = (
    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py',
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    'mmpretrain::resnet/resnet18_8xb32_in1k.py',
    'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
    'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    'retinanet_r50_fpn_1x_coco.py',
    'mask-rcnn_r50_fpn_1x_cityscapes.py',
    'pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'retinanet_contnet-ti_fpn_1x_coco.py',
)
# Where most of what the swap reads is.
READ = (
    'model',
    'optim_wrapper',
    'custom_imports',
    'load_from',
    'default_scope',
    'data_preprocessor',
)
ODD = (
    None, True, False, 0, -1, 3, 1.5, float('nan'), float('inf'), 2**63, 10**12, 10**40,
    '', 'text', 'ResNet', 'mmdet.ResNet', 'nowhere.Thing', "it's", 'a "b"', "'\"", 'a\nb', 'a\\',
    '\u2028', 'ä', '{{ fileDirname }}', '{{', '{{_base_.x}}', '$HOME', '%s', b'bytes', 'a' * 9999,
    '<class>', 'torchvision://resnet50', [], {}, (), [1], (1, 2), [[]], (None, None), ['a', 5],
    [{}], {'type': 'ResNet'}, {'type': 5}, {'type': None}, {'type': ''}, {1: 2}, {'a b': 1},
    {'_delete_': True}, {'_scope_': 'mmcls'}, {'type': 'Pretrained'}, {'type': 'nn.Linear'},
    {'type': 'Pretrained', 'checkpoint': None},
)  # fmt: skip
KEYS = (
    'x', 'type', '_delete_', '_scope_', '_base_', 'init_cfg', 'a b', '1', '', 'class', 'self',
    "it's", 'new\nline', '__debug__', 'model', 'in_channels', 'ä', 'dict',
)  # fmt: skip
TEXTS = (
    lambda text, rng: text[: rng.randrange(len(text))],
    lambda text, rng: text.replace(',', '', 1),
    lambda text, rng: text + '\nx = (',
    lambda text, rng: '\tx = 1\n' + text,
    lambda text, rng: text + '\nraise SystemExit(0)\n',
    lambda text, rng: text + '\n1 / 0\n',
    lambda text, rng: text + '\nimport nowhere\n',
    lambda text, rng: text + '\nfrom nowhere import x\n',
    lambda text, rng: text + '\nx = undefined\n',
    lambda text, rng: "_base_ = 'no.py'\n" + text,
    lambda text, rng: "_base_ = './mutant.py'\n" + text,
    lambda text, rng: "_base_ = ['mmdet::no.py']\n" + text,
    lambda text, rng: "_base_ = 5\n" + text,
    lambda text, rng: "_base_ = ['mmdet::_base_/default_runtime.py'] * 2\n" + text,
    lambda text, rng: text + "\nx = {{_base_.model}}\n",
    lambda text, rng: text + "\nx = '{{ nothing }}'\n",
    lambda text, rng: text + '\ndef f():\n    return 1\n',
    lambda text, rng: text + '\nx = f\ny = open\n',
    lambda text, rng: text + '\nx = lambda: 1\n',
    lambda text, rng: text + '\nx = object()\n',
    lambda text, rng: text + '\nclass A:\n    pass\n',
    lambda text, rng: text + '\nx = ' + '[' * 150 + ']' * 150 + '\n',
    lambda text, rng: text + '\nx = ' + '-' * 5000 + '1\n',
    lambda text, rng: text + '\nmodel = model["backbone"]\n',
    lambda text, rng: text + '\nmodel["backbone"]["me"] = model\n',
    lambda text, rng: text.encode('utf-16'),
    lambda text, rng: b'\xef\xbb\xbf' + text.encode(),
    lambda text, rng: text.encode() + '\nx = "L\xf6we"\n'.encode('latin-1'),
    lambda text, rng: f'# coding: latin-1\n{text}x = "\xf6"\n'.encode('latin-1', 'replace'),
    lambda text, rng: '# coding: klingon\n' + text,
    lambda text, rng: text.encode() + b'\0',
    lambda text, rng: b'',
    lambda text, rng: bytes(rng.randrange(256) for _ in range(500)),
    lambda text, rng: text.replace('\n', '\r\n'),
    lambda text, rng: text.replace('\n', '\r'),
    lambda text, rng: '\n'.join(line for line in text.splitlines() if rng.random() > 0.1),
)  # fmt: skip


class Mutants:
    """A sequence of configs: ``make(number)`` is always the same for the same number."""

    def __init__(self):
        self.bases = {name: to_plain(read_config(name)) for name in BASES}

    def make(self, number):
        """Return what was done, and the content of a config file."""
        rng = random.Random(number)
        name = BASES[number % len(BASES)]
        config = copy.deepcopy(self.bases[name])
        if rng.random() < 0.15:
            way = rng.randrange(len(TEXTS))
            text = TEXTS[way](write(config), rng)
            return f'{name}, text {way}', text if isinstance(text, bytes) else text.encode()
        done = [edit(config, rng) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
        return f'{name}, {"; ".join(done)}', write(config).encode()


def write(config):
    """Return the text of a config, whatever its keys."""
    lines = [
        f'{key} = {source(value)}'
        if key.isidentifier()
        else f'globals()[{key!r}] = {source(value)}'
        for key, value in config.items()
    ]
    return '\n'.join(lines) + '\n'


def source(value):
    return repr(value).replace('nan', "float('nan')").replace('inf,', "float('inf'),")


def edit(config, rng):
    """Change one value or key at random and say so."""
    top = rng.choice([key for key in READ if key in config])
    paths = [path for path, _ in walk(config[top], (top,))] if rng.random() < 0.9 else [()]
    path = rng.choice(paths or [()])
    holder = find_value(config, path)
    if not isinstance(holder, dict) or not holder:
        holder, path = config, ()
    key = rng.choice([*holder]) if path else top
    if key not in holder:
        return 'nothing'
    way = rng.choice(
        ('odd', 'odd', 'odd', 'drop', 'rename', 'add', 'wrap', 'other', 'copy', 'text')
    )
    value = rng.choice(ODD)
    if way == 'drop':
        del holder[key]
    elif way == 'rename':
        holder[rng.choice((f'{key}2', key.upper(), *KEYS))] = holder.pop(key)
    elif way == 'add':
        key = rng.choice(KEYS)
        holder[key] = value
    elif way == 'wrap':
        holder[key] = rng.choice(([holder[key]], (holder[key],) * 2, {'a': holder[key]}))
    elif way == 'other':
        other = rng.choice([*holder])
        holder[key], holder[other] = holder[other], holder[key]
    elif way == 'copy':
        holder[key] = copy.deepcopy(config.get('model'))
    elif way == 'text':
        holder[key] = str(holder[key])[:50]
    else:
        holder[key] = value
    return f'{way} {".".join(map(str, (*path, key)))} {str(value)[:20]!r}'
