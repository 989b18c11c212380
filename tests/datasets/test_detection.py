"""Checks of COCO files, their images and the instance maps of Cityscapes."""

import json
import shutil
import sys

import pytest
from PIL import Image

from contnet_mm.datasets.check import files, parts_of_folder
from contnet_mm.datasets.check.detection import DetectionPart
from tests.datasets.helpers import FIX, OPTIONS, assert_found, cut, edit, faults, names_of, notes


def coco_file(root):
    return root / 'annotations' / 'instances_train.json'


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
    'category of another id': (change_first('categories', id=77), {'category-id'}, 'category_id 1'),
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
        'image_id 1',
    ),
    'image id twice': (share_image_id, {'doubled', 'missing-entry'}, '1'),
    'annotation id twice': (share_annotation_id, {'doubled'}, '1'),
    'annotation without area': (drop('annotations', 'area'), {'fields'}, 'id 1, image_id 1'),
    'box of three numbers': (
        change_first('annotations', bbox=[1, 2, 3]),
        {'fields'},
        '[1, 2, 3]',
    ),
    'annotation of no image': (
        change_first('annotations', image_id=99),
        {'missing-entry'},
        'image_id 99',
    ),
    'unknown category': (
        change_first('annotations', category_id=99),
        {'category-id'},
        'category_id 99',
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
    'no mask': (drop('annotations', 'segmentation'), {'mask'}, 'id 1, image_id 1'),
    'polygon of two corners': (
        change_first('annotations', segmentation=[[1, 1, 2, 2]]),
        {'mask'},
        'id 1, image_id 1',
    ),
    'mask of another size': (wrong_mask_size, {'mask'}, 'id 1, image_id 1'),
}


@pytest.mark.parametrize('name', COCO_DAMAGE)
def test_damage_to_coco_is_found_and_named(demo, name):
    damage, expected, said = COCO_DAMAGE[name]
    damage(demo / 'coco')
    assert_found(parts_of_folder('coco', demo / 'coco'), expected, said)


def test_damage_hides_no_other_damage(demo):
    root = demo / 'coco'
    cut(root / 'train/000001.jpg')
    (root / 'train/000002.jpg').write_bytes(b'')
    (root / 'train/000003.jpg').unlink()
    change_first('annotations', bbox=[3, 3, 0, 9])(root)
    swap_categories(root)
    (root / 'annotations/instances_val.json').write_text('{')
    (root / 'val/000001.jpg').write_text('no image')
    issues = {(issue.part, issue.check) for issue in faults(parts_of_folder('coco', root))}
    train = {'unreadable', 'empty-file', 'missing-image', 'empty-box', 'class-order'}
    assert issues == {('train', check) for check in train} | {('val', 'unreadable')}
    said = ' '.join(e for f in faults(parts_of_folder('coco', root)) for e in f.examples)
    assert '000001.jpg' in said and 'instances_val.json' in said


def test_many_offenders_are_one_issue_with_a_count(demo):
    for path in (demo / 'coco' / 'train').iterdir():
        path.unlink()
    (issue,) = faults(parts_of_folder('coco', demo / 'coco'))
    assert issue.count == OPTIONS.num_train and len(issue.examples) == 3


def test_a_sample_leaves_damage_to_the_option_but_never_empty_files(demo, monkeypatch):
    monkeypatch.setattr(files, 'SAMPLE', 2)
    root = demo / 'coco'
    cut(root / 'train/000002.jpg')
    parts = parts_of_folder('coco', root)
    assert faults(parts) == []
    assert names_of(faults(parts, all_images=True)) == {'unreadable'}
    (root / 'train/000002.jpg').write_bytes(b'')
    assert names_of(faults(parts)) == {'empty-file'}


def coco_part(folder, annotations, **options):
    """Write one image of 20 x 30 pixels with annotations."""
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
    return DetectionPart(
        name='train',
        image_dir=folder / 'images',
        ann_file=folder / 'a.json',
        fix=FIX,
        **options,
    )


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
    part = coco_part(tmp_path, [box(1)], save={'exif': exif})
    assert names_of(faults([part])) == {'size'}


def test_colours_and_unknown_classes_are_noted(tmp_path):
    part = coco_part(tmp_path, [box(1)], mode='CMYK', classes=None, classes_note='no mmdet')
    assert faults([part]) == []
    assert names_of(notes([part])) == {'cmyk', 'classes'}
    shutil.rmtree(tmp_path / 'images')
    assert names_of(notes([coco_part(tmp_path, [box(1)], mode='L')])) == {'grey'}
    shutil.rmtree(tmp_path / 'images')
    part = coco_part(tmp_path, [box(1)], mode='I;16', save={'format': 'PNG'})
    assert names_of(notes([part])) == {'deep'}


def test_spare_images_of_a_data_set_of_unknown_size_are_noted_only(tmp_path):
    part = coco_part(tmp_path, [box(1)])
    shutil.copy(tmp_path / 'images/a.jpg', tmp_path / 'images/b.jpg')
    assert faults([part]) == [] and names_of(notes([part])) == {'unlisted-image'}


def test_a_library_that_does_not_import_is_named_instead_of_class_names(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet.datasets', None)
    (demo / 'settings.json').unlink()
    part = parts_of_folder('coco', demo / 'coco')[0]
    assert part.classes is None and 'mmdet does not import here' in part.classes_note
