"""What the readers make of data in every form, and of damage to it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from contnet_mm.datasets.check.issues import Report
from contnet_mm.datasets.own import masks, voc, yolo
from contnet_mm.datasets.own.coco import make_content, measure_area
from contnet_mm.datasets.own.data import Box, Part, Sample, choose_parts, hold_out, role_of
from contnet_mm.datasets.own.read import read_data
from contnet_mm.datasets.own.repair import clip
from tests.datasets.own.forms import CLASSES, COUNTS, SIZE, boxes_of, labels, save, voc_xml, write

LIBRARIES = dict(voc='mmdet', yolo='mmdet', coco='mmdet', masks='mmseg', folders='mmpretrain')


def issues_of(data):
    return {issue.check: issue for issue in data.report.issues if not issue.is_note}


@pytest.mark.parametrize('kind', ['voc', 'yolo', 'coco'])
def test_boxes_come_out_of_every_form_as_they_went_in(tmp_path, kind):
    data = read_data('mmdet', write(kind, tmp_path))
    assert data.classes == CLASSES and not data.report.issues
    assert {name: len(part.samples) for name, part in data.parts.items()} == COUNTS
    for part in data.parts.values():
        for sample in part.samples:
            assert sample.image.is_file() and sample.size == SIZE
            found = [(box.name, box.bbox) for box in sample.boxes]
            expected = boxes_of(int(sample.image.stem))
            assert [name for name, _ in found] == [name for name, _ in expected]
            pairs = zip(found, expected, strict=True)
            assert all(np.allclose(one[1], other[1], atol=1e-3) for one, other in pairs)


def test_label_images_and_folders_of_classes_are_read(tmp_path):
    data = read_data('mmseg', write('masks', tmp_path / 'masks'))
    assert data.classes == ('ground', *CLASSES) and not data.report.issues
    assert all(one.label_file.is_file() for one in data.parts['train'].samples)
    data = read_data('mmpretrain', write('folders', tmp_path / 'folders'))
    assert data.classes == CLASSES
    assert {one.name for one in data.parts['val'].samples} == {*CLASSES}


@pytest.mark.parametrize('kind', LIBRARIES)
def test_what_goes_with_another_library_is_named(tmp_path, kind):
    write(kind, tmp_path)
    other = 'mmdet' if LIBRARIES[kind] != 'mmdet' else 'mmpretrain'
    with pytest.raises(ValueError, match='goes with a base of'):
        read_data(other, tmp_path)


def test_a_folder_of_nothing_is_refused_with_what_is_looked_for(tmp_path):
    with pytest.raises(ValueError, match='COCO JSON, Pascal VOC XML, or YOLO'):
        read_data('mmdet', tmp_path)
    with pytest.raises(ValueError, match='nowhere is no folder'):
        read_data('mmdet', tmp_path / 'nowhere')


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><annotation>&c;'
# Name: what the file of image 1 holds, the check that speaks, and what it says.
VOC_DAMAGE = {
    'entities': (BOMB + '</annotation>', 'unreadable', 'document type declaration'),
    'entities in UTF-16': ((BOMB + '</annotation>').encode('utf-16'), 'unreadable', 'declaration'),
    'cut short': ('<annotation><object>', 'unreadable', 'no XML'),
    'of another kind': ('<html></html>', 'unreadable', '<html>'),
    'a word for a number': (
        voc_xml('1.jpg', [('cat', (1, 2, 30, 40))]).replace('<xmin>1<', '<xmin>one<'),
        'fields',
        'object 1 (cat)',
    ),
    'not a number': (
        voc_xml('1.jpg', [('cat', (1, 2, 30, 40))]).replace('<xmin>1<', '<xmin>nan<'),
        'fields',
        'object 1 (cat)',
    ),
    'an encoding that nobody knows': (
        '<?xml version="1.0" encoding="klingon"?><annotation/>',
        'unreadable',
        'klingon',
    ),
    'no name': (voc_xml('1.jpg', [('', (1, 2, 30, 40))]), 'fields', 'object 1 (no name)'),
    'no box': (
        '<annotation><object><name>cat</name></object></annotation>',
        'fields',
        'object 1 (cat)',
    ),
}


@pytest.mark.parametrize('name', VOC_DAMAGE)
def test_damaged_xml_is_found_and_named(tmp_path, name):
    content, check, said = VOC_DAMAGE[name]
    path = write('voc', tmp_path) / 'Annotations/1.xml'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    issue = issues_of(read_data('mmdet', tmp_path))[check]
    assert 'Annotations/1.xml' in issue.examples[0] and said in issue.examples[0] and issue.fix


def test_what_is_listed_without_xml_is_found(tmp_path):
    (write('voc', tmp_path) / 'Annotations/2.xml').unlink()
    issue = issues_of(read_data('mmdet', tmp_path))['missing-label']
    assert issue.count == 1 and issue.examples[0].startswith('2 in ')


def test_xml_beside_its_images_in_folders_of_parts_is_read(tmp_path):
    for part, number in (('train', 1), ('valid', 2)):
        save(Image.new('RGB', SIZE[::-1]), tmp_path / part / 'same.jpg')
        (tmp_path / part / 'same.xml').write_text(voc_xml('old.jpg', boxes_of(number)))
    data = read_data('mmdet', tmp_path)
    found = {name: part.samples[0].image for name, part in data.parts.items()}
    assert found == {part: tmp_path / part / 'same.jpg' for part in ('train', 'valid')}


def test_areas_are_those_of_masks_and_missing_ones_are_filled_in(tmp_path):
    path = write('coco', tmp_path) / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['area'] = 7
    del content['annotations'][1]['area']
    path.write_text(json.dumps(content))
    data = read_data('mmdet', tmp_path)
    areas = [measure_area(box) for box in data.parts['train'].samples[0].boxes]
    assert areas == [7, content['annotations'][1]['bbox'][2] * content['annotations'][1]['bbox'][3]]
    triangle = Box('cat', (0, 0, 10, 20), [[0, 0, 10, 0, 0, 20]])
    assert measure_area(triangle) == 100 and measure_area(Box('cat', (0, 0, 10, 20))) == 200


def test_what_is_difficult_is_ignored(tmp_path):
    path = write('voc', tmp_path) / 'Annotations/1.xml'
    path.write_text(path.read_text().replace('<difficult>0', '<difficult>1'))
    data = read_data('mmdet', tmp_path)
    content = make_content(data.parts['train'], data.classes, tmp_path / 'JPEGImages')
    assert [one['iscrowd'] for one in content['annotations'][:3]] == [1, 1, 0]


@pytest.mark.parametrize(
    ('line', 'check'),
    [
        ('cat 0.5 0.5 0.1 0.1', 'fields'),
        ('0 0.5 0.5 0.1', 'fields'),
        ('0 0.5 0.5 0.1 0.1 0.9', 'fields'),
        ('0 nan 0.5 0.1 0.1', 'fields'),
        ('7 0.5 0.5 0.1 0.1', 'category-id'),
        ('-1 0.5 0.5 0.1 0.1', 'fields'),
    ],
)
def test_a_damaged_line_of_yolo_is_found_with_its_number(tmp_path, line, check):
    path = write('yolo', tmp_path) / 'labels/train/1.txt'
    path.write_text(f'{path.read_text()}\n\n{line}\n')
    issue = issues_of(read_data('mmdet', tmp_path))[check]
    assert '1.txt line 4' in issue.examples[0] and issue.fix


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('names: [cat', 'is no YAML'),
        ('train: images/train', 'no list of names'),
        ('names: [cat]', 'names no images'),
        ('names: [cat]\ntrain: nowhere', 'nowhere for train, which does not exist'),
        ('names: !!python/object/apply:os.system ["x"]', 'is no YAML'),
    ],
)
def test_a_yaml_file_that_cannot_be_used_is_refused_with_the_reason(tmp_path, text, said):
    (tmp_path / 'data.yaml').write_text(text)
    with pytest.raises(ValueError, match=said):
        yolo.read(tmp_path, Report('data', False))


def test_yolo_without_yaml_and_with_a_list_of_images_is_read(tmp_path):
    write('yolo', tmp_path)
    (tmp_path / 'data.yaml').unlink()
    (tmp_path / 'classes.txt').write_text('\n'.join(CLASSES))
    assert {n: len(p.samples) for n, p in read_data('mmdet', tmp_path).parts.items()} == COUNTS
    (tmp_path / 'some.txt').write_text('./images/train/1.jpg\n./images/train/2.jpg\n')
    (tmp_path / 'data.yaml').write_text(f'train: some.txt\nval: ../images/val\nnames: {[*CLASSES]}')
    data = read_data('mmdet', tmp_path)
    assert [len(data.parts[name].samples) for name in ('train', 'val')] == [2, 2]
    assert all(len(sample.boxes) == 2 for sample in data.parts['train'].samples)


def test_coco_in_the_folders_of_the_parts_is_read(tmp_path):
    write('coco', tmp_path)
    for part in COUNTS:
        source = tmp_path / f'annotations/instances_{part}.json'
        source.rename(tmp_path / part / '_annotations.coco.json')
    data = read_data('mmdet', tmp_path)
    assert {name: part.image_dir for name, part in data.parts.items()} == {
        part: tmp_path / part for part in COUNTS
    }
    (tmp_path / 'train/other.json').write_text(
        (tmp_path / 'train/_annotations.coco.json').read_text()
    )
    assert issues_of(read_data('mmdet', tmp_path))['doubled'].count == 1


def test_masks_that_nothing_names_are_refused_with_their_values(tmp_path):
    (write('masks', tmp_path) / 'classes.txt').unlink()
    with pytest.raises(ValueError, match='hold 0, 1, 2, 3'):
        read_data('mmseg', tmp_path)
    assert read_data('mmseg', tmp_path, ('a', 'b', 'c', 'd')).classes == ('a', 'b', 'c', 'd')


def test_black_and_white_and_coloured_masks_get_labels(tmp_path):
    root = write('masks', tmp_path)
    (root / 'classes.txt').unlink()
    colours = np.array([(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)], np.uint8)
    for path in root.glob('masks/*/*.png'):
        Image.fromarray(colours[np.array(labels(int(path.stem)))]).save(path)
    names = ''.join(
        f'{n}:{",".join(map(str, c))}::\n' for n, c in zip('gcdo', colours, strict=True)
    )
    (root / 'labelmap.txt').write_text(f'# label:color_rgb:parts:actions\n{names}')
    data = read_data('mmseg', root)
    assert data.classes == tuple('gcdo') and data.palette[1] == (200, 0, 0)
    path = root / 'masks/train/1.png'
    assert np.array_equal(masks.convert(path, data.values), labels(1))
    (root / 'labelmap.txt').unlink()
    for path in root.glob('masks/*/*.png'):
        Image.fromarray(
            np.where(np.array(labels(int(path.stem))) > 0, 255, 0).astype(np.uint8)
        ).save(path)
    data = read_data('mmseg', root, ('ground', 'thing'))
    assert np.array_equal(masks.convert(path, data.values), np.array(labels(int(path.stem))) > 0)


def test_images_without_labels_are_found(tmp_path):
    (write('masks', tmp_path) / 'masks/train/1.png').unlink()
    data = read_data('mmseg', tmp_path)
    assert issues_of(data)['missing-label'].examples[0].endswith('images/train/1.png')
    assert len(data.parts['train'].samples) == COUNTS['train'] - 1


def test_names_of_parts_are_known():
    names = ('train', 'train2017', 'trainval', 'valid', 'Validation', 'test_2', 'cats', 'latest')
    roles = ('train', 'train', 'train', 'val', 'val', 'test', None, None)
    assert tuple(map(role_of, names)) == roles


def test_parts_are_chosen_by_name_or_by_share(tmp_path):
    data = read_data('mmpretrain', write('folders', tmp_path))
    chosen = choose_parts(data, None, None)
    assert chosen['test'] is chosen['val'] and chosen['val'].name == 'val'
    assert choose_parts(data, 'train', None)['val'].name == 'train'
    chosen = choose_parts(data, '0.25', 'val')
    assert [len(chosen[role].samples) for role in ('train', 'val', 'test')] == [9, 3, 6]
    assert {sample.name for sample in chosen['val'].samples} == {*CLASSES}
    assert not {*chosen['train'].samples} & {*chosen['val'].samples}
    assert choose_parts(data, '0.25', None)['val'] == chosen['val']
    for val, said in (('cats', 'no part of that name'), ('1.5', 'above 0 and below 1')):
        with pytest.raises(ValueError, match=said):
            choose_parts(data, val, None)
    del data.parts['val']
    with pytest.raises(ValueError, match='--val 0.2'):
        choose_parts(data, None, None)


@given(number=st.integers(2, 60), share=st.floats(0.01, 0.99))
def test_holding_out_loses_no_image_and_leaves_some_to_both(tmp_path_factory, number, share):
    part = Part(
        'all', tuple(Sample(tmp_path_factory.getbasetemp() / str(i)) for i in range(number))
    )
    kept, held = hold_out(part, share)
    assert kept.samples and held.samples and kept.source is None
    assert sorted({*kept.samples} | {*held.samples}, key=lambda s: s.image) == sorted(
        part.samples, key=lambda s: s.image
    )
    assert len(kept.samples) + len(held.samples) == number


BOXES = st.tuples(
    st.floats(0, 500), st.floats(0, 500), st.floats(1, 500), st.floats(1, 500)
).filter(lambda box: box[0] + box[2] <= 1000 and box[1] + box[3] <= 600)


@settings(deadline=None)
@given(box=BOXES)
def test_a_box_comes_back_from_a_line_of_yolo(box):
    left, top, width, height = box
    shares = (left + width / 2) / 1000, (top + height / 2) / 600, width / 1000, height / 600
    label, found, polygons = yolo.parse_line(f'2 {" ".join(map(repr, shares))}', (600, 1000))
    assert label == 2 and polygons == []
    assert np.allclose(found, box, atol=1e-9)


@settings(deadline=None)
@given(box=BOXES)
def test_a_polygon_comes_back_from_a_line_of_yolo_with_the_box_around_it(box):
    left, top, width, height = box
    corners = (left, top, left + width, top, left + width, top + height)
    shares = [value / (600 if index % 2 else 1000) for index, value in enumerate(corners)]
    _, found, (polygon,) = yolo.parse_line(f'0 {" ".join(map(repr, shares))}', (600, 1000))
    assert np.allclose(found, box, atol=1e-9) and np.allclose(polygon, corners, atol=1e-9)


@settings(deadline=None)
@given(boxes=st.lists(BOXES, max_size=5))
def test_boxes_come_back_from_xml_and_from_coco(tmp_path_factory, boxes):
    root = tmp_path_factory.mktemp('boxes')
    xml = voc_xml('a.jpg', [('cat', tuple(map(int, box))) for box in boxes])
    tree = voc.parse_xml(xml.encode())
    (root / 'a.xml').write_text(xml)
    data = voc.read(root, Report('data', False))
    assert len(list(tree.iter('object'))) == len(boxes)
    (sample,) = data.parts['all'].samples
    assert [box.bbox for box in sample.boxes] == [tuple(map(int, box)) for box in boxes]
    content = json.loads(json.dumps(make_content(data.parts['all'], ('cat',), root)))
    assert [tuple(one['bbox']) for one in content['annotations']] == [b.bbox for b in sample.boxes]
    assert all(one['area'] == one['bbox'][2] * one['bbox'][3] for one in content['annotations'])


@given(
    left=st.floats(-200, 200),
    top=st.floats(-200, 200),
    width=st.floats(-5, 300),
    height=st.floats(-5, 300),
)
def test_a_cut_box_lies_inside_and_one_inside_is_not_cut(left, top, width, height):
    box = Box('cat', (left, top, width, height))
    cut = clip(box, (100, 150))
    if cut is None:
        seen = min(left + width, 150) - max(left, 0), min(top + height, 100) - max(top, 0)
        assert min(seen) < 1
        return
    x, y, w, h = cut.bbox
    assert min(x, y) >= -1 and x + w <= 151 and y + h <= 101 and min(w, h) >= 1 - 1e-9
    inside = left >= 0 and top >= 0 and left + width <= 150 and top + height <= 100
    assert not inside or cut is box
