"""The data set check: nothing is said of good data, and every kind of damage is named."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from mmengine.config import Config
from PIL import Image

pytest.importorskip('skimage')
pytest.importorskip('sklearn')
pytest.importorskip('cityscapesscripts')

from contnet_mm.datasets.check import (
    ClassificationPart,
    DetectionPart,
    SegmentationPart,
    check_parts,
    files,
    parts_of_config,
    parts_of_folder,
)
from contnet_mm.datasets.check.fixes import (
    Mending,
    cityscapes_mending,
    coco_mending,
    demo_mending,
)
from contnet_mm.datasets.check.library import library_classes
from contnet_mm.datasets.demo import DemoOptions, make_demo_data
from tests.helpers import ROOT

SCRIPT = ROOT / 'tools' / 'check_dataset.py'
OPTIONS = DemoOptions(
    num_train=6, num_val=4, size=(96, 128), digits=(2, 4), digit_height=(28, 48), seed=1
)
MENDING = Mending('mend images', 'mend annotations', 'mend labels', 'mend ground truth')


@pytest.fixture(scope='module')
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pristine') / 'demo'
    make_demo_data(folder, OPTIONS)
    return folder


@pytest.fixture
def demo(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / 'data' / 'demo'))


def faults(parts, **options):
    return [finding for finding in check_parts(parts, **options) if not finding.note]


def notes(parts):
    return [finding for finding in check_parts(parts) if finding.note]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def save(values, path):
    Image.fromarray(values).save(path)


def coco_file(root):
    return root / 'annotations' / 'instances_train.json'


def city(root, kind='labelTrainIds.png', part='val', number=0):
    return root / 'gtFine' / part / 'demo' / f'demo_000000_{number:06d}_gtFine_{kind}'


def city_image(root, part='val', number=0):
    return root / 'leftImg8bit' / part / 'demo' / f'demo_000000_{number:06d}_leftImg8bit.png'


def one_digit(root, part='train'):
    return min((root / part).glob('*/*.png'))


@pytest.mark.parametrize('kind', ['coco', 'cityscapes', 'imagenet'])
def test_good_data_passes(demo, kind):
    assert faults(parts_of_folder(kind, demo / kind), every=True) == []


def test_hidden_files_of_other_programs_are_passed_over(demo):
    for folder in ('coco/train', 'cityscapes/gtFine/val', 'imagenet/val/1'):
        (demo / folder / '._1.png').write_bytes(b'')
        (demo / folder / '._1_gtFine_labelTrainIds.png').write_bytes(b'')
    for kind in ('coco', 'cityscapes', 'imagenet'):
        assert faults(parts_of_folder(kind, demo / kind)) == []


def change_first(key, **values):
    return lambda root: edit(coco_file(root), lambda content: content[key][0].update(values))


def drop(key, field):
    return lambda root: edit(coco_file(root), lambda content: content[key][0].pop(field))


def empty(key):
    return lambda root: edit(coco_file(root), lambda content: content[key].clear())


def swap_categories(root):
    edit(coco_file(root), lambda content: content['categories'].reverse())


def share_annotation_id(root):
    edit(coco_file(root), lambda content: content['annotations'][1].update(id=1))


def share_image_id(root):
    edit(coco_file(root), lambda content: content['images'][1].update(id=1))


def wrong_mask_size(root):
    def change(content):
        content['annotations'][0]['segmentation']['size'] = [5, 5]

    edit(coco_file(root), change)


def forget_image(root):
    edit(coco_file(root), lambda content: content['images'].pop(0))


# Name: what is done to data/demo/coco, the checks that must speak, and what one of them says.
COCO_DAMAGE = {
    'missing image': (
        lambda root: (root / 'train/000002.jpg').unlink(),
        {'missing-image'},
        '000002.jpg',
    ),
    'image of no annotation': (
        lambda root: shutil.copy(root / 'val/000001.jpg', root / 'train/extra.jpg'),
        {'unlisted-image'},
        'extra.jpg',
    ),
    'empty image': (
        lambda root: (root / 'train/000003.jpg').write_bytes(b''),
        {'empty-file'},
        '000003.jpg',
    ),
    'cut image': (lambda root: cut(root / 'train/000003.jpg'), {'unreadable'}, '000003.jpg'),
    'text for an image': (
        lambda root: (root / 'val/000001.jpg').write_text('<html>'),
        {'unreadable'},
        '000001.jpg',
    ),
    'no folder': (lambda root: shutil.rmtree(root / 'val'), {'layout'}, 'coco/val'),
    'no annotations': (
        lambda root: coco_file(root).unlink(),
        {'layout'},
        'instances_train.json',
    ),
    'cut annotations': (
        lambda root: cut(coco_file(root)),
        {'unreadable'},
        'instances_train.json',
    ),
    'annotations of another kind': (
        lambda root: coco_file(root).write_text('[1]'),
        {'fields'},
        'images',
    ),
    'empty list': (empty('annotations'), {'fields'}, 'annotations'),
    'category of another name': (change_first('categories', name='zero'), {'classes'}, '0'),
    'category of another id': (change_first('categories', id=77), {'category-id'}, 'category 1'),
    'category twice': (change_first('categories', id=2), {'doubled', 'category-id'}, '2'),
    'categories in another order': (swap_categories, {'class-order'}, "'9' where '0'"),
    'image without width': (
        drop('images', 'width'),
        {'fields', 'count', 'missing-entry', 'unlisted-image'},
        '000001.jpg',
    ),
    'image of another size': (change_first('images', height=90), {'size', 'mask'}, '(90, 128)'),
    'image forgotten': (
        forget_image,
        {'count', 'missing-entry', 'unlisted-image'},
        'of image 1',
    ),
    'image id twice': (share_image_id, {'doubled', 'missing-entry'}, '1'),
    'annotation id twice': (share_annotation_id, {'doubled'}, '1'),
    'annotation without area': (drop('annotations', 'area'), {'fields'}, 'annotation 1'),
    'box of three numbers': (
        change_first('annotations', bbox=[1, 2, 3]),
        {'fields'},
        '[1, 2, 3]',
    ),
    'annotation of no image': (
        change_first('annotations', image_id=99),
        {'missing-entry'},
        'of image 99',
    ),
    'unknown category': (
        change_first('annotations', category_id=99),
        {'category-id'},
        'category 99',
    ),
    'empty box': (change_first('annotations', bbox=[3, 3, 0, 9]), {'empty-box'}, '[3, 3, 0, 9]'),
    'empty area': (change_first('annotations', area=0), {'empty-box'}, 'area 0'),
    'box outside': (
        change_first('annotations', bbox=[500, 3, 9, 9]),
        {'outside-box'},
        '[500, 3, 9, 9]',
    ),
    'box half outside': (
        change_first('annotations', bbox=[120, 3, 30, 9]),
        {'outside-box'},
        '[120, 3, 30, 9]',
    ),
    'no mask': (drop('annotations', 'segmentation'), {'mask'}, 'annotation 1'),
    'polygon of two corners': (
        change_first('annotations', segmentation=[[1, 1, 2, 2]]),
        {'mask'},
        'annotation 1',
    ),
    'mask of another size': (wrong_mask_size, {'mask'}, 'annotation 1'),
}


def assert_found(parts, expected, said):
    findings = faults(parts)
    assert {finding.check for finding in findings} == expected
    assert any(said in example for finding in findings for example in finding.examples)
    assert all(finding.mend for finding in findings)


@pytest.mark.parametrize('name', COCO_DAMAGE)
def test_damage_to_coco_is_found_and_named(demo, name):
    damage, expected, said = COCO_DAMAGE[name]
    damage(demo / 'coco')
    assert_found(parts_of_folder('coco', demo / 'coco'), expected, said)


def label_ids_for_train_ids(root):
    for number in range(OPTIONS.num_val):
        shutil.copy(city(root, 'labelIds.png', number=number), city(root, number=number))


def strange_value(root):
    values = np.array(Image.open(city(root)))
    values[0, 0] = 77
    save(values, city(root))


def instances_of_8_bits(root):
    shutil.copy(city(root, 'labelIds.png'), city(root, 'instanceIds.png'))


CITYSCAPES_DAMAGE = {
    'no labels': (lambda root: city(root).unlink(), {'missing-label'}, 'labelTrainIds.png'),
    'no image': (
        lambda root: city_image(root).unlink(),
        {'missing-image', 'count'},
        '_leftImg8bit.png',
    ),
    'labelIds for labelTrainIds': (label_ids_for_train_ids, {'label-values'}, 'demo_000000_'),
    'strange value': (strange_value, {'label-values'}, '[77]'),
    'small labels': (
        lambda root: save(np.zeros((9, 9), np.uint8), city(root)),
        {'size'},
        '(9, 9)',
    ),
    'colours for labels': (
        lambda root: save(np.zeros((*OPTIONS.size, 3), np.uint8), city(root)),
        {'label-mode'},
        'RGB',
    ),
    'empty labels': (lambda root: city(root).write_bytes(b''), {'empty-file'}, 'TrainIds.png'),
    'cut labels': (lambda root: cut(city(root)), {'unreadable'}, 'TrainIds.png'),
    'cut image': (lambda root: cut(city_image(root)), {'unreadable'}, 'leftImg8bit.png'),
    'no instance map': (
        lambda root: city(root, 'instanceIds.png').unlink(),
        {'missing-instances'},
        'instanceIds.png',
    ),
    'cut instance map': (
        lambda root: cut(city(root, 'instanceIds.png')),
        {'unreadable'},
        'instanceIds.png',
    ),
    'instance map of 8 bits': (instances_of_8_bits, {'instance-values'}, 'not 16 bits'),
    'small instance map': (
        lambda root: save(np.zeros((9, 9), np.uint16), city(root, 'instanceIds.png')),
        {'instance-values'},
        '(9, 9)',
    ),
    'no ground truth': (
        lambda root: shutil.rmtree(root / 'gtFine'),
        {'layout', 'missing-label', 'missing-instances'},
        'gtFine/train',
    ),
    'no annotation file': (
        lambda root: shutil.rmtree(root / 'annotations'),
        {'layout'},
        'instancesonly_filtered_gtFine_train.json',
    ),
}


@pytest.mark.parametrize('name', CITYSCAPES_DAMAGE)
def test_damage_to_cityscapes_is_found_and_named(demo, name):
    damage, expected, said = CITYSCAPES_DAMAGE[name]
    damage(demo / 'cityscapes')
    assert_found(parts_of_folder('cityscapes', demo / 'cityscapes'), expected, said)


def test_label_ids_are_called_by_their_name_and_other_values_are_not(demo):
    root = demo / 'cityscapes'
    strange_value(root)
    (finding,) = faults(parts_of_folder('cityscapes', root))
    assert '(77)' in finding.what and 'labelIds' not in finding.what
    label_ids_for_train_ids(root)
    (finding,) = faults(parts_of_folder('cityscapes', root))
    assert 'they hold labelIds where labelTrainIds belong' in finding.what


IMAGENET_DAMAGE = {
    'empty image': (
        lambda root: one_digit(root).write_bytes(b''),
        {'empty-file'},
        '.png',
    ),
    'cut image': (lambda root: cut(one_digit(root)), {'unreadable'}, '.png'),
    'missing class': (lambda root: shutil.rmtree(root / 'val/3'), {'classes'}, '3'),
    'folder of a notebook': (
        lambda root: (root / 'train/.ipynb_checkpoints').mkdir(),
        {'strange-folder', 'classes'},
        '.ipynb_checkpoints',
    ),
    'loose image': (
        lambda root: shutil.copy(one_digit(root), root / 'train/loose.png'),
        {'loose-image'},
        'loose.png',
    ),
    'no folder': (lambda root: shutil.rmtree(root / 'val'), {'layout'}, 'imagenet/val'),
}


@pytest.mark.parametrize('name', IMAGENET_DAMAGE)
def test_damage_to_imagenet_is_found_and_named(demo, name):
    damage, expected, said = IMAGENET_DAMAGE[name]
    damage(demo / 'imagenet')
    assert_found(parts_of_folder('imagenet', demo / 'imagenet'), expected, said)


def test_damage_hides_no_other_damage(demo):
    root = demo / 'coco'
    cut(root / 'train/000001.jpg')
    (root / 'train/000002.jpg').write_bytes(b'')
    (root / 'train/000003.jpg').unlink()
    change_first('annotations', bbox=[3, 3, 0, 9])(root)
    swap_categories(root)
    (root / 'annotations/instances_val.json').write_text('{')
    (root / 'val/000001.jpg').write_text('no image')
    findings = {(finding.part, finding.check) for finding in faults(parts_of_folder('coco', root))}
    train = {'unreadable', 'empty-file', 'missing-image', 'empty-box', 'class-order'}
    assert findings == {('train', check) for check in train} | {('val', 'unreadable')}
    said = ' '.join(e for f in faults(parts_of_folder('coco', root)) for e in f.examples)
    assert '000001.jpg' in said and 'instances_val.json' in said


def test_many_offenders_are_one_finding_with_a_count(demo):
    for path in (demo / 'coco' / 'train').iterdir():
        path.unlink()
    (finding,) = faults(parts_of_folder('coco', demo / 'coco'))
    assert finding.count == OPTIONS.num_train and len(finding.examples) == 3


def test_a_sample_leaves_damage_to_the_option_but_never_empty_files(demo, monkeypatch):
    monkeypatch.setattr(files, 'SAMPLE', 2)
    root = demo / 'coco'
    cut(root / 'train/000002.jpg')
    parts = parts_of_folder('coco', root)
    assert faults(parts) == []
    assert [finding.check for finding in faults(parts, every=True)] == ['unreadable']
    (root / 'train/000002.jpg').write_bytes(b'')
    assert [finding.check for finding in faults(parts)] == ['empty-file']


def coco_part(folder, annotations, **options):
    """Writes one image of 20 x 30 pixels with annotations."""
    (folder / 'images').mkdir()
    Image.new(options.pop('mode', 'RGB'), (30, 20)).save(
        folder / 'images/a.jpg', **options.pop('save', {})
    )
    entry = {'id': 1, 'file_name': 'a.jpg', 'height': 20, 'width': 30, **options.pop('entry', {})}
    content = {
        'images': [entry],
        'categories': [{'id': 1, 'name': 'thing'}],
        'annotations': annotations,
    }
    (folder / 'a.json').write_text(json.dumps(content))
    options = {'classes': ('thing',), **options}
    return DetectionPart('train', folder / 'images', folder / 'a.json', MENDING, **options)


def box(number, bbox=(1, 1, 8, 8)):
    return {
        'id': number,
        'image_id': 1,
        'category_id': 1,
        'bbox': list(bbox),
        'area': 9,
        'segmentation': [[1, 1, 4, 1, 4, 4]],
    }


def test_a_few_empty_boxes_among_thousands_are_noted_only(tmp_path):
    boxes = [box(number) for number in range(1, 2000)]
    part = coco_part(tmp_path, [*boxes, box(2000, (1, 1, 0, 8))])
    assert faults([part]) == []
    (note,) = notes([part])
    assert note.check == 'empty-box' and note.count == 1


def test_images_are_measured_as_they_are_turned_on_reading(tmp_path):
    exif = Image.Exif()
    exif[files.EXIF_ORIENTATION] = 6
    part = coco_part(tmp_path, [box(1)], save={'exif': exif}, entry={'height': 30, 'width': 20})
    assert faults([part]) == []
    shutil.rmtree(tmp_path / 'images')
    assert [f.check for f in faults([coco_part(tmp_path, [box(1)], save={'exif': exif})])] == [
        'size'
    ]


def test_colours_and_unknown_classes_are_noted(tmp_path):
    part = coco_part(tmp_path, [box(1)], mode='CMYK', classes=None, classes_note='no mmdet')
    assert faults([part]) == []
    assert {note.check for note in notes([part])} == {'cmyk', 'classes'}
    shutil.rmtree(tmp_path / 'images')
    assert [note.check for note in notes([coco_part(tmp_path, [box(1)], mode='L')])] == ['grey']
    shutil.rmtree(tmp_path / 'images')
    part = coco_part(tmp_path, [box(1)], mode='I;16', save={'format': 'PNG'})
    assert [note.check for note in notes([part])] == ['deep']


def test_spare_images_of_a_data_set_of_unknown_size_are_noted_only(tmp_path):
    part = coco_part(tmp_path, [box(1)])
    shutil.copy(tmp_path / 'images/a.jpg', tmp_path / 'images/b.jpg')
    assert faults([part]) == [] and [note.check for note in notes([part])] == ['unlisted-image']


def test_missing_libraries_are_named_instead_of_class_names():
    classes, reason = library_classes('no_such_library', 'CocoDataset')
    assert classes is None and 'no_such_library does not import here' in reason


def imagenet(root, listed=None, part='train', folders=('n01', 'n02', 'n03')):
    """Writes two images per class; or one folder of images with a list, where one is given."""
    root.mkdir(exist_ok=True)
    names = [f'{folder}/{number}.JPEG' for folder in folders for number in range(2)]
    if listed is not None:
        (root / 'list.txt').write_text(listed)
    if listed is not None and '/' not in listed:
        names = [line.split()[0] for line in listed.splitlines()]
    for name in names:
        (root / part / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(root / part / name, format='JPEG')
    return ClassificationPart(
        part,
        root / part,
        MENDING,
        ann_file=root / 'list.txt' if listed is not None else None,
        num_classes=len(folders),
        num_images=len(names),
        wordnet_order=True,
    )


FLAT = 'a.JPEG 0\nb.JPEG 1\nc.JPEG 2\n'
FOLDERS = ''.join(f'n0{i}/{k}.JPEG {i - 1}\n' for i in (1, 2, 3) for k in range(2))


@pytest.mark.parametrize('listed', [None, FLAT, FOLDERS])
def test_every_good_imagenet_layout_passes(tmp_path, listed):
    assert check_parts([imagenet(tmp_path / 'a', listed)]) == []


@pytest.mark.parametrize(
    ('listed', 'expected'),
    [
        (FLAT.replace('c.JPEG 2', 'c.JPEG 3'), {'label-values', 'empty-class'}),
        (FLAT + 'c.JPEG 1\n', {'doubled'}),
        (FLAT + 'd.JPEG\n', {'list'}),
        (FOLDERS.replace('n01/0.JPEG 0', 'n01/0.JPEG 1'), {'label-values'}),
        (
            FOLDERS.replace('JPEG 0', 'JPEG 3').replace('JPEG 1', 'JPEG 0').replace(' 3', ' 1'),
            {'class-order'},
        ),
        (FOLDERS.replace('n01/0', 'n01/9'), {'missing-image', 'unlisted-image'}),
    ],
)
def test_damage_to_a_list_of_labels_is_found(tmp_path, listed, expected):
    imagenet(tmp_path / 'a', FOLDERS if '/' in listed else FLAT)
    (tmp_path / 'a/list.txt').write_text(listed)
    part = ClassificationPart(
        'train',
        tmp_path / 'a/train',
        MENDING,
        ann_file=tmp_path / 'a/list.txt',
        num_classes=3,
        wordnet_order=True,
    )
    assert {finding.check for finding in faults([part])} == expected


def test_a_list_that_is_not_utf_8_is_a_finding_that_names_it(tmp_path):
    path = tmp_path / 'list.txt'
    path.write_bytes('Müll.JPEG 0\n'.encode('latin-1'))
    parts = [
        ClassificationPart('train', tmp_path, MENDING, path),
        SegmentationPart('train', tmp_path, tmp_path, 3, MENDING, ann_file=path),
    ]
    for finding in faults(parts):
        assert (finding.check, finding.mend) == ('list', 'mend annotations')
        assert 'is not UTF-8' in finding.what and str(path) in finding.examples[0]
    assert len(faults(parts)) == 2


def test_a_list_for_flat_images_beside_folders_is_put_away(tmp_path):
    root = tmp_path / 'it is'
    imagenet(root)
    (root / 'list.txt').write_text(FLAT)
    part = ClassificationPart('train', root / 'train', MENDING, root / 'list.txt', num_classes=3)
    (finding,) = faults([part])
    assert finding.check == 'missing-image'
    subprocess.run(['bash', '-c', finding.mend], check=True)
    assert not (root / 'list.txt').exists() and (root / 'list.txt.unused').exists()


def test_flat_images_without_a_list_are_found(tmp_path):
    imagenet(tmp_path / 'a', FLAT)
    part = ClassificationPart('train', tmp_path / 'a/train', MENDING, num_classes=3)
    (finding,) = faults([part])
    assert finding.check == 'flat' and finding.mend == 'mend annotations'


def test_packed_classes_are_unpacked_by_the_command_named(tmp_path):
    part = imagenet(tmp_path / 'a b')
    folder = tmp_path / 'a b' / 'train'
    with tarfile.open(folder / 'n03.tar', 'w') as archive:
        for number in range(2):
            archive.add(folder / 'n03' / f'{number}.JPEG', arcname=f'{number}.JPEG')
    shutil.rmtree(folder / 'n03')
    findings = {finding.check: finding for finding in faults([part])}
    assert findings.keys() == {'packed', 'classes', 'count'}
    subprocess.run(['bash', '-c', findings['packed'].mend], check=True)
    assert check_parts([part]) == []


def test_parts_with_other_classes_are_found(tmp_path):
    parts = [
        imagenet(tmp_path / 'a', part='train'),
        imagenet(tmp_path / 'a', part='val', folders=('n01', 'n02', 'n04')),
    ]
    (finding,) = faults(parts)
    assert finding.examples == ('n03', 'n04') and finding.part == 'val'


def test_an_empty_class_is_found(tmp_path):
    part = imagenet(tmp_path / 'a')
    for path in (tmp_path / 'a/train/n02').iterdir():
        path.unlink()
    assert {finding.check for finding in faults([part])} == {'empty-class', 'count'}


def test_published_data_is_expected_under_its_names_and_counts(tmp_path):
    counts = {
        kind: {part.name: part.num_images for part in parts_of_folder(kind, tmp_path)}
        for kind in ('coco', 'cityscapes', 'imagenet')
    }
    assert counts == {
        'coco': {'train2017': 118287, 'val2017': 5000},
        'cityscapes': {
            'train (semantic)': 2975,
            'train (instances)': 2975,
            'val (semantic)': 500,
            'val (instances)': 500,
        },
        'imagenet': {'train': 1281167, 'val': 50000},
    }
    assert [len(parts_of_folder('coco', tmp_path)[0].classes)] == [80]
    findings = faults(parts_of_folder('coco', tmp_path))
    command = f'unzip -qo {tmp_path}/train2017.zip -d {tmp_path}'
    assert command in [finding.mend for finding in findings]


def test_the_page_on_data_unpacks_what_the_check_says():
    page = (ROOT / 'docs' / 'data.md').read_text()
    loops = re.findall(r'^for name in .* unzip .*; done$', page, re.MULTILINE)
    script = '\n'.join(['unzip() { echo unzip "$@"; }', *loops])
    result = subprocess.run(['bash', '-c', script], check=True, capture_output=True, text=True)
    coco = [coco_mending(Path('data/coco'), name) for name in ('train2017', 'val2017')]
    cityscapes = cityscapes_mending(Path('data/cityscapes'))
    commands = [coco[0].images, coco[1].images, coco[0].annotations]
    assert result.stdout.splitlines() == [*commands, cityscapes.images, cityscapes.ground_truth]
    assert f'\n{cityscapes.labels}\n' in page and f'mend: {commands[0]}\n' in page


def test_a_wrong_number_of_published_images_is_found(demo):
    (demo / 'settings.json').unlink()
    findings = faults(parts_of_folder('cityscapes', demo / 'cityscapes'))
    assert {finding.check for finding in findings} == {'count'} and len(findings) == 4
    assert any('6 images' in finding.what and '2975' in finding.what for finding in findings)


def test_a_converted_file_in_the_wrong_folder_is_moved_by_the_command_named(demo):
    root = demo / 'cityscapes'
    (root / 'annotations/instancesonly_filtered_gtFine_val.json').rename(
        root / 'instancesonly_filtered_gtFine_val.json'
    )
    (finding,) = faults(parts_of_folder('cityscapes', root))
    assert ' && mv ' in finding.mend
    subprocess.run(['bash', '-c', finding.mend], check=True)
    assert faults(parts_of_folder('cityscapes', root)) == []


def test_the_command_for_labels_makes_them(demo):
    root = demo / 'cityscapes'
    label_ids_for_train_ids(root)
    scripts = Path(sys.executable).parent
    command = f'PATH={shlex.quote(str(scripts))}:$PATH {cityscapes_mending(root).labels}'
    subprocess.run(['bash', '-c', command], check=True, capture_output=True)
    assert faults(parts_of_folder('cityscapes', root)) == []


def test_the_command_for_the_demo_makes_it_with_its_settings(demo):
    settings = json.loads((demo / 'settings.json').read_text())
    command = demo_mending(demo, settings).images
    start, arguments = command.split(' make_demo_data ')
    assert start == 'python -m contnet_mm'
    parse = runpy.run_path(str(ROOT / 'tools/make_demo_data.py'))['make_parser']().parse_args
    args = parse(shlex.split(arguments))
    assert args.out == demo and args.overwrite
    assert (
        DemoOptions(
            num_train=args.num_train,
            num_val=args.num_val,
            size=tuple(args.size),
            digits=tuple(args.digits),
            digit_height=tuple(args.digit_height),
            seed=args.seed,
        )
        == OPTIONS
    )


DEMO_CONFIGS = sorted((ROOT / 'configs' / 'demo').glob('*.py'))


@pytest.mark.parametrize('path', DEMO_CONFIGS, ids=lambda path: path.stem)
def test_demo_configs_read_the_demo_data(demo, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    parts = parts_of_config(Config.fromfile(path))
    assert [part.name for part in parts] == ['train', 'val, test']
    assert all(str(part.image_dir).startswith('data/demo/') for part in parts)
    assert faults(parts) == []
    shutil.rmtree(parts[0].image_dir)
    findings = faults(parts)
    assert findings and {finding.part for finding in findings} == {'train'}


def coco_config(demo, **changes):
    dataset = dict(
        type='CocoDataset',
        data_root=str(demo / 'coco'),
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        metainfo=dict(classes=tuple('0123456789')),
    )
    content = dict(
        default_scope='mmdet',
        train_dataloader=None,
        val_dataloader=dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset)),
        val_evaluator=dict(
            type='CocoMetric', ann_file=str(demo / 'coco/annotations/instances_val.json')
        ),
    )
    config = Config(content)
    config.merge_from_dict(changes)
    return config


def test_wrapped_data_sets_are_checked(demo):
    assert faults(parts_of_config(coco_config(demo))) == []
    cut(demo / 'coco/val/000001.jpg')
    assert [f.check for f in faults(parts_of_config(coco_config(demo)))] == ['unreadable']


def test_an_evaluator_that_reads_other_annotations_is_found(demo):
    other = str(demo / 'coco/annotations/instances_train.json')
    config = coco_config(demo, **{'val_evaluator.ann_file': other})
    assert [finding.check for finding in faults(parts_of_config(config))] == ['metric']


def test_classes_of_the_config_are_looked_for(demo):
    names = [*'012345678', 'nine']
    key = 'val_dataloader.dataset.dataset.metainfo.classes'
    (finding,) = faults(parts_of_config(coco_config(demo, **{key: names})))
    assert finding.check == 'classes' and finding.examples == ('nine',)


def test_a_config_that_names_label_ids_is_told_the_suffix(demo):
    config = Config(
        dict(
            default_scope='mmseg',
            val_dataloader=dict(
                dataset=dict(
                    type='CityscapesDataset',
                    data_root=str(demo / 'cityscapes'),
                    data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
                    seg_map_suffix='_gtFine_labelIds.png',
                )
            ),
        )
    )
    (finding,) = faults(parts_of_config(config))
    assert finding.check == 'label-values'
    assert "seg_map_suffix='_gtFine_labelTrainIds.png'" in finding.mend


def test_a_config_with_classes_in_another_order_than_the_folders_is_found(demo):
    config = Config(
        dict(
            default_scope='mmpretrain',
            val_dataloader=dict(
                dataset=dict(
                    type='CustomDataset',
                    data_root=str(demo / 'imagenet'),
                    data_prefix='val',
                    metainfo=dict(classes=tuple('9876543210')),
                )
            ),
        )
    )
    (finding,) = faults(parts_of_config(config))
    assert finding.check == 'class-order' and 'folder 0, class 9' in finding.examples


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'val_dataloader.dataset.dataset.type': 'LVISDataset'}, 'mmdet.LVISDataset'),
        ({'val_dataloader.dataset.dataset.data_root': 's3://bucket/'}, 's3://bucket/'),
        ({'val_dataloader': None}, 'none of train_dataloader'),
    ],
)
def test_what_cannot_be_checked_is_refused_by_its_name(demo, changes, said):
    with pytest.raises(ValueError, match=said):
        parts_of_config(coco_config(demo, **changes))


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, 'argv', ['check_dataset.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name='__main__')
    output = capsys.readouterr()
    return stop.value.code, output.out + output.err


def test_the_script_passes_good_data(demo, monkeypatch, capsys):
    status, output = run(monkeypatch, capsys, 'coco', demo / 'coco', '--all-images')
    assert status == 0 and '0 to mend' in output


def test_the_script_names_damage_and_its_mending(demo, monkeypatch, capsys):
    for path in (demo / 'coco' / 'train').iterdir():
        path.unlink()
    status, output = run(monkeypatch, capsys, 'coco', demo / 'coco')
    assert status == 1 and '1 to mend' in output
    assert 'missing-image (6): listed images are missing' in output and 'and 3 more' in output
    assert 'mend: python -m contnet_mm make_demo_data' in output


def test_the_script_takes_a_config_with_options(demo, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'my.py'
    coco_config(demo).dump(path)
    option = f'val_dataloader.dataset.dataset.data_prefix.img={demo}/coco/train'
    assert run(monkeypatch, capsys, '--config', path)[0] == 0
    assert run(monkeypatch, capsys, '--config', path, '--cfg-options', option)[0] == 1


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([], '--config CONFIG'),
        (['coco'], 'ROOT'),
        (['voc', 'x'], 'voc'),
        (['coco', 'nowhere'], 'nowhere is no folder'),
        (['--config', 'nowhere.py'], 'nowhere.py is neither a file'),
        (['--config', str(SCRIPT)], 'must be one of mmdet'),
        (['--config', 'mmdet::x.py'], 'mmdet::x.py is no config'),
        (['--config', 'mmdet::_base_/default_runtime.py'], 'has none of'),
        (['--config', 'retinanet_contnet-ti_fpn_dem.py'], 'did you mean retinanet_contnet-ti'),
        (['coco', '.', '--config', 'a.py'], 'not both'),
    ],
)
def test_the_script_refuses_wrong_use_with_status_2(monkeypatch, capsys, arguments, said):
    status, output = run(monkeypatch, capsys, *arguments)
    assert status == 2 and said in output and 'Traceback' not in output


def test_the_index_for_mim_names_the_three_data_sets():
    index = yaml.safe_load((ROOT / 'dataset-index.yml').read_text())
    # What both versions of `mim download` read without asking.
    assert index.pop('openxlab') is True
    assert index.keys() == {'coco2017', 'cityscapes', 'imagenet1k'}
    for entry in index.values():
        assert entry['dataset'].startswith('OpenDataLab/') and entry['download_root'] == 'data'
