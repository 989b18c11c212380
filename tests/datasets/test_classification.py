"""Checks of folders of classes and of lists of labels."""

import shutil
import subprocess
import tarfile
from dataclasses import replace

import pytest
from PIL import Image

from contnet_mm.datasets.check import check_parts, parts_of_folder
from contnet_mm.datasets.check.classification import ClassificationPart
from contnet_mm.datasets.check.segmentation import SegmentationPart
from tests.datasets.helpers import FIX, assert_found, cut, faults, names_of


def one_digit(root):
    return min((root / 'train').glob('*/*.png'))


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


def imagenet(root, listed=None, part='train', folders=('n01', 'n02', 'n03')):
    """Write two images per class; or one folder of images with a list, where one is given."""
    root.mkdir(exist_ok=True)
    names = [f'{folder}/{number}.JPEG' for folder in folders for number in range(2)]
    if listed is not None:
        (root / 'list.txt').write_text(listed)
    if listed is not None and '/' not in listed:
        names = [line.split()[0] for line in listed.splitlines()]
    for index, name in enumerate(names):
        (root / part / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8), (20 * index, 9 * len(part), 0)).save(
            root / part / name, format='JPEG'
        )
    return ClassificationPart(
        name=part,
        image_dir=root / part,
        fix=FIX,
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
    part = imagenet(tmp_path / 'a', FOLDERS if '/' in listed else FLAT)
    (tmp_path / 'a/list.txt').write_text(listed)
    assert names_of(faults([replace(part, num_images=None)])) == expected


def test_a_list_that_is_not_utf_8_is_an_issue_that_names_it(tmp_path):
    path = tmp_path / 'list.txt'
    path.write_bytes('Müll.JPEG 0\n'.encode('latin-1'))
    common = dict(name='train', image_dir=tmp_path, fix=FIX, ann_file=path)
    parts = [
        ClassificationPart(**common),
        SegmentationPart(
            **common, label_dir=tmp_path, num_classes=3, image_suffix='.jpg', label_suffix='.png'
        ),
    ]
    for issue in faults(parts):
        assert (issue.check, issue.fix) == ('list', 'fix annotations')
        assert 'is not UTF-8' in issue.what and str(path) in issue.examples[0]
    assert len(faults(parts)) == 2


def test_a_list_for_flat_images_beside_folders_is_put_away(tmp_path):
    root = tmp_path / 'it is'
    part = imagenet(root)
    (root / 'list.txt').write_text(FLAT)
    (issue,) = faults([replace(part, ann_file=root / 'list.txt', num_images=None)])
    assert issue.check == 'missing-image'
    subprocess.run(['bash', '-c', issue.fix], check=True)
    assert not (root / 'list.txt').exists() and (root / 'list.txt.unused').exists()


def test_flat_images_without_a_list_are_found(tmp_path):
    part = imagenet(tmp_path / 'a', FLAT)
    (issue,) = faults([replace(part, ann_file=None, num_images=None)])
    assert issue.check == 'flat' and issue.fix == 'fix annotations'


def test_packed_classes_are_unpacked_by_the_command_named(tmp_path):
    part = imagenet(tmp_path / 'a b')
    folder = tmp_path / 'a b' / 'train'
    with tarfile.open(folder / 'n03.tar', 'w') as archive:
        for number in range(2):
            archive.add(folder / 'n03' / f'{number}.JPEG', arcname=f'{number}.JPEG')
    shutil.rmtree(folder / 'n03')
    issues = {issue.check: issue for issue in faults([part])}
    assert issues.keys() == {'packed', 'classes', 'count'}
    subprocess.run(['bash', '-c', issues['packed'].fix], check=True)
    assert check_parts([part]) == []


def test_parts_with_other_classes_are_found(tmp_path):
    parts = [
        imagenet(tmp_path / 'a', part='train'),
        imagenet(tmp_path / 'a', part='val', folders=('n01', 'n02', 'n04')),
    ]
    (issue,) = faults(parts)
    assert issue.examples == ('n03', 'n04') and issue.part == 'val'


def test_an_empty_class_is_found(tmp_path):
    part = imagenet(tmp_path / 'a')
    for path in (tmp_path / 'a/train/n02').iterdir():
        path.unlink()
    assert names_of(faults([part])) == {'empty-class', 'count'}
