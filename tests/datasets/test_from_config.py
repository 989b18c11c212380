"""What the data loaders of a config are found to read."""

import shutil

import pytest
from mmengine.config import Config

from contnet_mm.datasets.check import parts_of_config
from tests.datasets.helpers import coco_config, cut, faults, names_of
from tests.helpers import ROOT

DEMO_CONFIGS = sorted((ROOT / 'configs' / 'demo').glob('*.py'))


@pytest.mark.parametrize('path', DEMO_CONFIGS, ids=lambda path: path.stem)
def test_demo_configs_read_the_demo_data(demo, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    parts = parts_of_config(Config.fromfile(path))
    assert [part.name for part in parts] == ['train', 'val, test']
    assert all(str(part.image_dir).startswith('data/demo/') for part in parts)
    assert faults(parts) == []
    shutil.rmtree(parts[0].image_dir)
    issues = faults(parts)
    assert issues and {issue.part for issue in issues} == {'train'}


def test_wrapped_data_sets_are_checked(demo):
    assert faults(parts_of_config(coco_config(demo))) == []
    cut(demo / 'coco/val/000001.jpg')
    assert names_of(faults(parts_of_config(coco_config(demo)))) == {'unreadable'}


def test_an_evaluator_that_reads_other_annotations_is_found(demo):
    other = str(demo / 'coco/annotations/instances_train.json')
    config = coco_config(demo, **{'val_evaluator.ann_file': other})
    assert names_of(faults(parts_of_config(config))) == {'metric'}


def test_classes_of_the_config_are_looked_for(demo):
    names = [*'012345678', 'nine']
    key = 'val_dataloader.dataset.dataset.metainfo.classes'
    (issue,) = faults(parts_of_config(coco_config(demo, **{key: names})))
    assert issue.check == 'classes' and issue.examples == ('nine',)


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
    (issue,) = faults(parts_of_config(config))
    assert issue.check == 'label-values'
    assert "seg_map_suffix='_gtFine_labelTrainIds.png'" in issue.fix


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
    (issue,) = faults(parts_of_config(config))
    assert issue.check == 'class-order' and 'folder 0, class 9' in issue.examples


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
