"""Annotations that are no mistake of a person: numbers without end, texts too deep, long names."""

import json

import numpy as np
import pytest

from contnet_mm.datasets.check.annotations import _count_pixels
from contnet_mm.datasets.check.issues import DatasetIssue, describe
from contnet_mm.datasets.own.read import read_data
from tests.datasets.own import forms
from tests.reliability.test_fuzz_data import issues_of

COCO = {
    'box without end': (dict(bbox=[1, 2, float('inf'), 4]), 'fields'),
    'area of nan': (dict(area=float('nan')), 'fields'),
    'polygon of text': (dict(segmentation=[['1'] * 8]), 'mask'),
    'polygon of nan': (dict(segmentation=[[1, 2, float('nan'), 4, 5, 6]]), 'mask'),
    'too few run lengths': (
        dict(segmentation=dict(size=[*forms.SIZE], counts=[3, 4])),
        'mask',
    ),
    'text for run lengths': (
        dict(segmentation=dict(size=[*forms.SIZE], counts='\x01')),
        'mask',
    ),
    'text times a number': (dict(bbox=[1, 2, 'x', 10**30]), 'fields'),
}


@pytest.fixture
def coco(tmp_path):
    """Return what changes the first annotation and lists what is found then."""
    root = forms.write('coco', tmp_path / 'coco')
    path = root / 'annotations/instances_train.json'

    def change(change=lambda content: None, text=str):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(text(json.dumps(content)))
        return '\n'.join(issues_of('coco', root, tmp_path / 'out')[1])

    return change


@pytest.mark.parametrize('name', list(COCO))
def test_odd_values_are_found(coco, name):
    values, check = COCO[name]
    assert f'] {check}' in coco(lambda content: content['annotations'][0].update(values))


def test_annotations_too_deep_are_found(coco):
    assert 'no JSON' in coco(
        text=lambda text: '{"info": ' + '[' * 10**5 + ']' * 10**5 + ',' + text[1:]
    )


def test_lists_of_another_kind_are_found(coco):
    assert '] fields' in coco(lambda content: content.update(annotations=5))


@pytest.mark.parametrize('name', ['x' * 5000, 'a\0.jpg', '\ud800.jpg'])
def test_names_that_no_file_can_have_are_missing(coco, name):
    said = coco(lambda content: content['images'][0].update(file_name=name))
    assert 'missing-image' in said and said.encode()


def test_half_a_letter_is_described():
    issue = DatasetIssue('train', 'x', 'what', examples=('\ud800',))
    assert '\\ud800' in describe(issue)


@pytest.mark.parametrize('seed', range(5))
def test_run_lengths_are_counted_as_pycocotools_does(seed):
    from pycocotools import mask

    pixels = np.random.RandomState(seed).rand(37, 53) < (0.02, 0.5, 0.98, 0, 1)[seed]
    encoded = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    assert _count_pixels(encoded['counts'].decode()) == pixels.size
    assert _count_pixels([10, 20, 7]) == 37
    assert _count_pixels([10, -20]) is None and _count_pixels([1.5]) is None


YAML = 'train: images/train\nval: images/val\n'
NESTED = 'a0: &a0 [x, x]\n' + ''.join(f'a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n' for n in range(1, 40))
YOLO = {
    'names mixed': YAML + 'names: {0: cat, a: dog}\n',
    'names without end': NESTED + YAML + 'names: *a39\n',
    'paths without end': NESTED + 'train: *a39\nnames: [a]\n',
    'folder without end': NESTED + YAML + 'path: *a39\nnames: [a]\n',
    'too deep': YAML + 'names: ' + '[' * 3000 + ']' * 3000,
    'path of no file': 'train: "a\\0b"\nnames: [a]\n',
    'long path': f'train: {"x" * 5000}\nnames: [a]\n',
}


@pytest.mark.parametrize('name', list(YOLO))
def test_an_odd_yaml_file_is_refused_by_its_name(tmp_path, name):
    root = forms.write('yolo', tmp_path / 'yolo')
    (root / 'data.yaml').write_text(YOLO[name])
    with pytest.raises(ValueError, match='data.yaml') as error:
        read_data('mmdet', root)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize(
    ('kind', 'library', 'path', 'content'),
    [
        ('yolo', 'mmdet', 'classes.txt', b'L\xf6we'),
        ('voc', 'mmdet', 'ImageSets/Main/train.txt', b'\xff\xfe1'),
        ('masks', 'mmseg', 'classes.txt', b'L\xf6we'),
        ('masks', 'mmseg', 'labelmap.txt', b'cat\n'),
        ('masks', 'mmseg', 'labelmap.txt', b'cat:a,b,c::'),
    ],
)
def test_an_odd_list_is_refused_by_its_name(tmp_path, kind, library, path, content):
    root = forms.write(kind, tmp_path / kind)
    if kind == 'yolo':
        (root / 'data.yaml').unlink()
    (root / path).write_bytes(content)
    with pytest.raises(ValueError, match=path.rpartition('/')[2]):
        read_data(library, root)
