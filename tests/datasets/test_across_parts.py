"""Checks that compare parts with each other, and with the heads of a model."""

import shutil

import pytest
from mmengine.config import Config
from PIL import Image

from contnet_mm.datasets.check import parts_of_config
from contnet_mm.datasets.check.duplicates import TAIL, check_duplicates, find_duplicates
from tests.datasets.helpers import coco_config, edit, faults, names_of, notes

MODEL = dict(rpn_head=dict(num_classes=1), roi_head=dict(bbox_head=[dict(num_classes=80)]))


def write_images(folder, **colours):
    """Write a small image for each name, of one colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in colours.items():
        Image.new('RGB', (40, 40), colour).save(folder / f'{name}.png')
    return {path: path.stat().st_size for path in sorted(folder.iterdir())}


def test_equal_files_are_found_and_only_they(tmp_path):
    content = bytes(range(256)) * 64
    files = {
        'a': content,
        'b': content,
        'other end': content[:-1] + b'x',
        'other begin': b'x' + content[1:],
        'longer': content + b'x',
        'empty': b'',
    }
    assert len(content) > TAIL
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    sizes = {path: path.stat().st_size for path in tmp_path.iterdir()}
    pair = {tmp_path / 'a', tmp_path / 'b'}
    found = find_duplicates(sizes)
    assert found.keys() == pair and all({*group} == pair for group in found.values())


def test_a_leak_between_parts_is_found_whatever_the_files_are_called(tmp_path):
    parts = {
        'train': write_images(tmp_path / 'a', x='red', y='green'),
        'val, test': write_images(tmp_path / 'b', z='red', w='blue'),
    }
    (issue,) = check_duplicates(parts, all_images=True)
    assert issue.check == 'leak' and issue.count == 1 and issue.fix
    assert 'a/x.png' in issue.examples[0] and 'b/z.png' in issue.examples[0]


def test_a_file_that_two_parts_name_is_a_leak_as_well(tmp_path):
    images = write_images(tmp_path, x='red', y='green')
    (issue,) = check_duplicates({'train2017': images, 'val2017': images}, all_images=True)
    assert issue.check == 'leak' and issue.count == 2
    # One file for two tasks of one part, as in Cityscapes, is none.
    assert not check_duplicates({'train (a)': images, 'train (b)': images}, all_images=True)


def test_copies_within_a_part_and_between_val_and_test_are_noted_only(tmp_path):
    images = write_images(tmp_path, x='red', y='red', z='blue')
    twice, other = dict(list(images.items())[:2]), dict(list(images.items())[2:])
    (issue,) = check_duplicates({'train': twice}, all_images=True)
    assert issue.check == 'duplicate' and issue.is_note
    assert 'x.png' in issue.examples[0] and 'y.png' in issue.examples[0]
    (issue,) = check_duplicates({'val': other, 'test': other}, all_images=True)
    assert issue.check == 'leak' and issue.is_note


def test_check_dataset_finds_a_leak_in_the_data_of_a_config(demo):
    config = coco_config(demo)
    val = config.val_dataloader.dataset.dataset
    config.train_dataloader = dict(
        dataset={
            **val,
            'ann_file': 'annotations/instances_train.json',
            'data_prefix': {'img': 'train'},
        }
    )
    assert faults(parts_of_config(config)) == []
    shutil.copy(demo / 'coco/val/000002.jpg', demo / 'coco/train/000001.jpg')
    found = names_of(faults(parts_of_config(config)))
    assert 'leak' in found and found <= {'leak', 'size'}


def test_heads_with_another_number_of_classes_than_the_data_are_named(demo):
    config = coco_config(demo)
    config.model = MODEL
    (issue,) = faults(parts_of_config(config))
    assert issue.check == 'head-classes' and '10 of the data' in issue.what
    assert issue.examples == ('model.roi_head.bbox_head.0.num_classes=80',)
    option = issue.fix.split('--cfg-options ')[1].split(',')[0]
    config.merge_from_dict(dict([option.split('=')]))
    assert option == 'model.roi_head.bbox_head.0.num_classes=10'
    config.model.roi_head.bbox_head[0].num_classes = 10
    assert faults(parts_of_config(config)) == []


def test_one_head_is_named_once_for_all_parts(demo):
    config = coco_config(demo)
    config.model = MODEL
    config.train_dataloader = config.val_dataloader
    config.test_dataloader = dict(
        dataset={**config.val_dataloader.dataset.dataset, 'data_prefix': {'img': 'train'}}
    )
    issues = [issue for issue in faults(parts_of_config(config)) if issue.check == 'head-classes']
    assert len(issues) == 1


@pytest.mark.parametrize('classes', [None, tuple('0123456789')])
def test_heads_are_compared_with_folders_of_classes(demo, classes):
    dataset = dict(type='CustomDataset', data_root=str(demo / 'imagenet'), data_prefix='val')
    if classes:
        dataset['metainfo'] = dict(classes=classes)
    content = dict(
        default_scope='mmpretrain',
        val_dataloader=dict(dataset=dataset),
        data_preprocessor=dict(num_classes=1000),
        model=dict(head=dict(num_classes=10)),
    )
    (issue,) = faults(parts_of_config(Config(content)))
    assert issue.examples == ('data_preprocessor.num_classes=1000',)


def test_heads_are_compared_with_the_classes_of_label_images(demo):
    dataset = dict(
        type='CityscapesDataset',
        data_root=str(demo / 'cityscapes'),
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
    )
    content = dict(
        default_scope='mmseg',
        val_dataloader=dict(dataset=dataset),
        model=dict(decode_head=dict(num_classes=19), auxiliary_head=[dict(num_classes=150)]),
    )
    (issue,) = faults(parts_of_config(Config(content)))
    assert issue.examples == ('model.auxiliary_head.0.num_classes=150',)


@pytest.mark.parametrize('layout', ['cityscapes', 'imagenet', 'coco'])
def test_an_empty_part_is_found(demo, layout):
    scope, dataset = {
        'cityscapes': (
            'mmseg',
            dict(
                type='BaseSegDataset',
                data_prefix=dict(img_path='none', seg_map_path='gtFine/val'),
                metainfo=dict(classes=tuple('abc')),
            ),
        ),
        'imagenet': ('mmpretrain', dict(type='CustomDataset', data_prefix='none')),
        'coco': (
            'mmdet',
            dict(
                type='CocoDataset',
                data_prefix=dict(img='none'),
                ann_file='annotations/instances_val.json',
                metainfo=dict(classes=tuple('0123456789')),
            ),
        ),
    }[layout]
    root = demo / layout
    (root / 'none').mkdir()
    if layout == 'coco':
        edit(
            root / dataset['ann_file'], lambda c: [c[k].clear() for k in ('images', 'annotations')]
        )
    loader = dict(dataset={**dataset, 'data_root': str(root)})
    issues = faults(parts_of_config(Config(dict(default_scope=scope, val_dataloader=loader))))
    assert {'empty'} & names_of(issues) or {'fields'} == names_of(issues)


def test_images_of_another_part_in_the_same_folder_are_not_called_spare(demo):
    (demo / 'settings.json').unlink()  # which tells how many images there are
    root = demo / 'coco'
    for path in (root / 'val').iterdir():
        shutil.copy(path, root / 'train' / f'v{path.name}')

    def rename(content):
        for image in content['images']:
            image['file_name'] = f'v{image["file_name"]}'

    edit(root / 'annotations/instances_val.json', rename)
    config = coco_config(demo)
    val = config.val_dataloader.dataset.dataset
    val.data_prefix = dict(img='train')
    assert 'unlisted-image' in names_of(notes(parts_of_config(config)))
    train = {**val, 'ann_file': 'annotations/instances_train.json'}
    config.train_dataloader = dict(dataset=train)
    assert 'unlisted-image' not in names_of(notes(parts_of_config(config)))


def test_a_class_without_a_box_is_noted(demo):
    def drop(content):
        content['annotations'] = [a for a in content['annotations'] if a['category_id'] != 4]

    edit(demo / 'coco/annotations/instances_val.json', drop)
    (note,) = [n for n in notes(parts_of_config(coco_config(demo))) if '3' in n.examples]
    assert note.check == 'empty-class'
