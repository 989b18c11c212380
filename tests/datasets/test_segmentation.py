"""Checks of images with label images, in Cityscapes' layout."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contnet_mm.datasets.check import parts_of_folder
from contnet_mm.datasets.check.fixes import published_fix
from tests.datasets.helpers import OPTIONS, assert_found, cut, faults


def save(values, path):
    Image.fromarray(values).save(path)


def city(root, kind='labelTrainIds.png'):
    """Return the path of a label image in the demo's Cityscapes layout."""
    return root / 'gtFine/val/demo' / f'demo_000000_000000_gtFine_{kind}'


def city_image(root):
    return root / 'leftImg8bit/val/demo/demo_000000_000000_leftImg8bit.png'


def put_label_ids_for_train_ids(root):
    for path in root.glob('gtFine/val/*/*_labelIds.png'):
        shutil.copy(path, path.with_name(path.name.replace('labelIds', 'labelTrainIds')))


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
    'labelIds for labelTrainIds': (put_label_ids_for_train_ids, {'label-values'}, 'demo_000000_'),
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
    (issue,) = faults(parts_of_folder('cityscapes', root))
    assert '(77)' in issue.what and 'labelIds' not in issue.what
    put_label_ids_for_train_ids(root)
    (issue,) = faults(parts_of_folder('cityscapes', root))
    assert 'they hold labelIds where labelTrainIds belong' in issue.what


def test_the_command_for_labels_makes_them(demo):
    root = demo / 'cityscapes'
    put_label_ids_for_train_ids(root)
    scripts = shlex.quote(str(Path(sys.executable).parent))
    command = f'PATH={scripts}:$PATH {published_fix("cityscapes", root, "val").labels}'
    subprocess.run(['bash', '-c', command], check=True, capture_output=True)
    assert faults(parts_of_folder('cityscapes', root)) == []
