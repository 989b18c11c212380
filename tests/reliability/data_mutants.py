"""Small data sets with one thing damaged, and whether that has to be found."""

import io
import json
import random
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.datasets.own import forms

KINDS = ('coco', 'masks', 'folders', 'voc', 'yolo')
NAN, INFINITY = float('nan'), float('inf')


def write_bases(folder):
    """Write each form of the data set once and return the folders by kind."""
    return {kind: forms.write(kind, Path(folder, kind)) for kind in KINDS}


def damage(kind, root, number):
    """Damage one thing in a data set.

    Returns:
        What was done; the file; and whether it has to be found: True or False, or None where the
        data may be good as well as bad.
    """
    rng = random.Random(number)
    ways = dict(
        coco=(damage_image, damage_bytes, damage_coco),
        masks=(damage_image, damage_label, damage_image),
        folders=(damage_image, damage_image, damage_folder),
        voc=(damage_image, damage_bytes, damage_voc),
        yolo=(damage_image, damage_bytes, damage_yolo),
    )[kind]
    return ways[number // len(KINDS) % 3](rng, root, kind)


def images_of(root):
    # The folder of label images apart.
    return [
        path
        for path in sorted(root.rglob('*'))
        if path.suffix in ('.jpg', '.png') and 'masks' not in path.parts
    ]


def damage_image(rng, root, kind):
    path = rng.choice([p for p in images_of(root) if 'val' not in p.parts])
    size = Image.open(path).size
    data = bytearray(path.read_bytes())
    way = rng.choice(
        ('cut', 'flip', 'zero', 'text', 'empty', 'head', 'other', 'bomb', 'turn', 'tail')
    )
    if way == 'cut':
        data = data[: rng.randrange(1, len(data))]
    elif way == 'flip':
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == 'zero':
        start = rng.randrange(len(data))
        data[start : start + 500] = bytes(len(data[start : start + 500]))
    elif way == 'text':
        data = b'<html>too many requests</html>'
    elif way == 'empty':
        data = b''
    elif way == 'head':
        data[: rng.randrange(1, 64)] = b''
    elif way == 'other':  # good, but of another size
        data = encode(
            Image.new('RGB', (size[0] + rng.randrange(1, 9), size[1]), (9, 99, 199)), path
        )
    elif way == 'bomb':
        data = png_of(rng.choice(((60000, 60000), (1 << 30, 1 << 30), (0, 5), (2**31 - 1, 1))))
    elif way == 'turn':
        image = Image.open(path).convert('RGB')
        exif = image.getexif()
        exif[0x0112] = 6
        stream = io.BytesIO()
        image.save(stream, 'JPEG' if path.suffix == '.jpg' else 'PNG', exif=exif)
        data = stream.getvalue()
    else:
        data += rng.randbytes(100)
    path.write_bytes(bytes(data))
    return f'image {way}', path, must_find_image(path, size, kind in ('coco', 'masks'))


def must_find_image(path, size, size_counts):
    """Decode as the trainings do, by OpenCV, and by Pillow; None where only one of them can."""
    data = np.frombuffer(path.read_bytes() or b'0', np.uint8)
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:  # of too many pixels
        pixels = None
    try:
        with Image.open(path) as image:
            image.load()
        by_pillow = True
    except Exception:
        by_pillow = False
    if not by_pillow or pixels is None:
        return True
    if size_counts and pixels.shape[:2] != size[::-1]:
        return True
    return None


def encode(image, path):
    stream = io.BytesIO()
    image.save(stream, 'JPEG' if path.suffix == '.jpg' else 'PNG')
    return stream.getvalue()


def png_of(size):
    """Return a PNG that claims a size, and holds a row or two of it."""

    def chunk(name, data):
        return (
            struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        )

    head = struct.pack('>IIBBBBB', *size, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10_000))
    parts = chunk(b'IHDR', head) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + parts


def damage_label(rng, root, kind):
    path = rng.choice(sorted((root / 'masks/train').glob('*.png')))
    pixels = np.asarray(Image.open(path)).copy()
    way = rng.choice(('value', 'size', 'colour', 'gone', 'cut', 'text', 'deep', 'ignored', 'bomb'))
    must = way != 'ignored'
    if way in ('value', 'ignored'):
        pixels[3, 3] = 77 if way == 'value' else 255
        Image.fromarray(pixels).save(path)
    elif way == 'size':
        Image.fromarray(pixels[:-1]).save(path)
    elif way == 'colour':
        Image.fromarray(np.stack([pixels] * 3, -1)).save(path)
    elif way == 'gone':
        path.unlink()
    elif way == 'deep':
        Image.fromarray(pixels.astype(np.uint16) * 300).save(path)
    elif way == 'bomb':
        path.write_bytes(png_of((60000, 60000)))
    else:
        path.write_bytes(path.read_bytes()[:70] if way == 'cut' else b'text')
    return f'label {way}', path, must


def damage_folder(rng, root, kind):
    """Folders of classes: what a copy that went wrong leaves."""
    folder = rng.choice(sorted(path for path in (root / 'train').iterdir()))
    way = rng.choice(('emptied', 'loose', 'hidden', 'link', 'nested', 'gone'))
    first = sorted(folder.iterdir())[0]
    if way == 'emptied':
        for path in folder.iterdir():
            path.unlink()
    elif way == 'loose':
        first.rename(root / 'train' / 'loose.png')
        return f'folder {way}', root / 'train' / 'loose.png', True
    elif way == 'hidden':
        (root / 'train' / '.cache').mkdir()
        return f'folder {way}', root / 'train' / '.cache', None
    elif way == 'link':  # that leads nowhere
        name = first.name
        first.unlink()
        first.symlink_to(root / 'nowhere.png')
        return f'folder {way}', folder / name, None
    elif way == 'nested':
        (folder / 'more').mkdir()
        shutil.copy(first, folder / 'more' / 'other.png')
        return f'folder {way}', folder / 'more', None
    else:
        shutil.rmtree(folder)
    return f'folder {way}', folder, True


def damage_bytes(rng, root, kind):
    """Damage the bytes of an annotation file, of whatever form."""
    pattern = dict(
        coco='annotations/*train.json', voc='**/*.[xt][mx][lt]', yolo='**/*.[ty][xa][tm]*'
    )
    path = rng.choice([p for p in sorted(root.glob(pattern[kind])) if 'val' not in str(p)])
    before = path.read_bytes()
    data = bytearray(before)
    way = rng.choice(
        ('cut', 'flip', 'insert', 'utf-16', 'latin-1', 'zeros', 'empty', 'lines', 'bom')
    )
    at = rng.randrange(len(data))
    if way == 'cut':
        data = data[:at]
    elif way == 'flip':
        data[at] ^= 1 << rng.randrange(8)
    elif way == 'insert':
        data[at:at] = rng.randbytes(rng.choice((1, 3, 100)))
    elif way == 'utf-16':
        data = before.decode().encode('utf-16')
    elif way == 'latin-1':
        data[at:at] = 'Löwe'.encode('latin-1')
    elif way == 'zeros':
        data[at : at + 40] = bytes(len(data[at : at + 40]))
    elif way == 'empty':
        data = b''
    elif way == 'lines':
        data = before.replace(b'\n', b'\r\n')
    else:
        data = b'\xef\xbb\xbf' + before
    path.write_bytes(bytes(data))
    must = None
    if kind == 'coco':
        try:
            if json.loads(bytes(data)) == json.loads(before):
                must = False
        except (ValueError, RecursionError):
            must = True
    return f'bytes {way}', path, must


def damage_coco(rng, root, kind):
    path = root / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    key = rng.choice(('images', 'annotations', 'categories'))
    entry = rng.choice(content[key])
    odd = rng.choice(
        (None, True, [], {}, 'text', '', 'a\0b', 'x' * 5000, '\ud800', NAN, INFINITY, -INFINITY,
         10**30, -1, [[]], {'a': 1}, '../../../etc/passwd', 1e-300)
    )  # fmt: skip
    # Each with whether it has to be found.
    edits = {
        'no list': (lambda: content.pop(key), True),
        'list of another kind': (lambda: content.update({key: odd}), True),
        'entry of another kind': (lambda: content[key].append(odd), True),
        'entry twice': (lambda: content[key].append(dict(entry)), True),
        'field missing': (lambda: entry.pop(rng.choice([*FIELDS[key]])), True),
        'odd field': (lambda: entry.update({rng.choice([*FIELDS[key]]): odd}), None),
        'no box': (lambda: a.update(bbox=[1, 2, 3]), True),
        'box of nan': (lambda: a.update(bbox=[1, 2, NAN, 4]), True),
        'box without end': (lambda: a.update(bbox=[1, 2, INFINITY, 4]), True),
        'box of text': (lambda: a.update(bbox=['1', 2, 3, 4]), True),
        'empty box': (lambda: a.update(bbox=[1, 2, 0, 4]), True),
        'box below zero': (lambda: a.update(bbox=[-50, 2, 30, 4]), True),
        'box outside': (lambda: a.update(bbox=[1, 2, 3000, 4]), True),
        'area of nan': (lambda: a.update(area=NAN), True),
        'area below zero': (lambda: a.update(area=-4), True),
        'no polygon': (lambda: a.update(segmentation=[[1, 2, 3, 4]]), True),
        'polygon of text': (lambda: a.update(segmentation=[['1'] * 8]), True),
        'polygon of nan': (lambda: a.update(segmentation=[[1, 2, NAN, 4, 5, 6]]), True),
        'polygon in a polygon': (lambda: a.update(segmentation=[[[1, 2]] * 8]), True),
        'odd mask': (lambda: a.update(segmentation=odd), None),
        'run lengths of another size': (
            lambda: a.update(segmentation={'size': [1, 2], 'counts': 'abc'}),
            True,
        ),
        'run lengths that are none': (
            lambda: a.update(segmentation={'size': [*forms.SIZE], 'counts': '\x01\x02'}),
            True,
        ),
        'deep': (lambda: content.update(info=DEEP), None),
        'extra': (lambda: entry.update(extra=odd), False),
        'other class': (lambda: a.update(category_id=99), True),
        'other image': (lambda: a.update(image_id=99), True),
        'image of another size': (lambda: i.update(height=1), True),
        'image missing': (lambda: i.update(file_name='no.jpg'), True),
        'long name': (lambda: i.update(file_name='x' * 5000), True),
        'name of a folder': (lambda: i.update(file_name='.'), True),
        'name of half a letter': (lambda: i.update(file_name='\ud800.jpg'), True),
        'name with zero': (lambda: i.update(file_name='a\0.jpg'), True),
    }
    a, i = rng.choice(content['annotations']), rng.choice(content['images'])
    name = rng.choice([*edits])
    edit, must = edits[name]
    if name in ('list of another kind', 'entry of another kind') and odd in (True, 1):
        must = True
    edit()
    text = json.dumps(content).replace(json.dumps(DEEP), '[' * 100_000 + ']' * 100_000)
    path.write_text(text)
    return f'{name} in {key} ({str(odd)[:9]!r})', path, must


DEEP = 'deep-down'
FIELDS = {
    'images': ('id', 'file_name', 'height', 'width'),
    'categories': ('id', 'name'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
}


def damage_voc(rng, root, kind):
    path = rng.choice(sorted((root / 'Annotations').glob('[1-4].xml')))
    text = path.read_text()
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    edits = {
        'no end': (text[:-5], True),
        'other root': (text.replace('annotation>', 'note>'), True),
        'entities': (bomb + text, True),
        'no box': (text.replace('bndbox', 'box'), True),
        'box of text': (text.replace('<xmin>', '<xmin>a'), True),
        'box of nan': (text.replace('<xmin>', '<xmin>nan</xmin><xmin>'), True),
        'box without end': (text.replace('<xmax>', '<xmax>1e999</xmax><xmax>'), True),
        'box turned': (
            text.replace('xmin', 'q').replace('xmax', 'xmin').replace('q', 'xmax'),
            True,
        ),
        'no name': (text.replace('<name>', '<nom>').replace('</name>', '</nom>'), True),
        'no size': (text.replace('width', 'w').replace('<height', '<h'), None),
        'size of nan': (
            text.replace('<width>96', '<width>nan').replace('<height>64', '<height>inf'),
            None,
        ),
        'wrong size': (text.replace('<width>96', '<width>48'), True),
        'deep': (
            '<annotation>' + '<a>' * 50_000 + '</a>' * 50_000 + text[len('<annotation>') :],
            None,
        ),
        'long filename': (text.replace('<filename>', '<filename>' + 'x' * 5000), None),
        'other encoding': ('<?xml version="1.0" encoding="klingon"?>' + text, True),
        'object in an object': (text.replace('</object>', text[12:-13] + '</object>', 1), None),
        'no objects': ('<annotation></annotation>', None),
        'bytes': ('\x01' + text, True),
    }
    name = rng.choice([*edits])
    path.write_text(edits[name][0])
    return name, path, edits[name][1]


def damage_yolo(rng, root, kind):
    lines = {
        'other class': ('9 .5 .5 .1 .1', True),
        'class below zero': ('-1 .5 .5 .1 .1', True),
        'text': ('cat .5 .5 .1 .1', True),
        'three numbers': ('0 .5 .5 .1', True),
        'nan': ('0 nan .5 .1 .1', True),
        'endless': ('0 .5 .5 inf .1', True),
        'pixels': ('0 50 50 20 20', True),
        'empty box': ('0 .5 .5 0 .1', True),
        'below zero': ('0 .5 .5 -.1 .1', True),
        'long number': ('0' * 9999 + ' .5 .5 .1 .1', None),
        'many digits': ('9' * 9999 + ' .5 .5 .1 .1', True),
        'odd polygon': ('0 .1 .1 .2 .2 .3', True),
        'flat polygon': ('0 .1 .1 .2 .1 .3 .1', True),
        'zeros': ('\0\0\0', True),
    }
    nested = 'a0: &a0 [x, x]\n' + ''.join(
        f'a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n' for n in range(1, 40)
    )
    base = 'train: images/train\nval: images/val\n'
    yamls = {
        'no names': (base, True),
        'names of numbers': (base + 'names: 3\n', True),
        'names mixed': (base + 'names: {0: cat, a: dog, 2: owl}\n', True),
        'names nested': (nested + base + 'names: *a39\n', True),
        'name is a list': (base + 'names: [[cat], dog, owl]\n', True),
        'names of none': (base + 'names: [~, ~, ~]\n', None),
        'names twice': (base + 'names: [cat, cat, owl]\n', None),
        'path nested': (nested + 'train: *a39\nval: images/val\nnames: [a, b, c]\n', True),
        'path with zero': ('train: "images/tr\\0ain"\nval: images/val\nnames: [a, b, c]\n', True),
        'long path': (f'train: {"x" * 5000}\nval: images/val\nnames: [a, b, c]\n', True),
        'path of nobody': ('train: no/where\nval: images/val\nnames: [a, b, c]\n', True),
        'code': (base + 'names: !!python/object/apply:os.system [ls]\n', True),
        'tabs': (base + 'names:\n\t- cat\n', True),
        'deep': (base + 'names: ' + '[' * 3000 + ']' * 3000 + '\n', True),
        'itself': (base + 'names: &a [*a, b, c]\n', True),
    }
    if rng.random() < 0.5:
        path = rng.choice(sorted((root / 'labels/train').glob('*.txt')))
        name = rng.choice([*lines])
        line, must = lines[name]
        path.write_text(path.read_text() + '\n' + line)
    else:
        path, name = root / 'data.yaml', rng.choice([*yamls])
        text, must = yamls[name]
        path.write_text(text)
    return name, path, must
