"""What the tests of the data set check share: damage to files, and what is found then."""

import json

import pytest
from mmengine.config import Config

pytest.importorskip('skimage')
pytest.importorskip('sklearn')
pytest.importorskip('cityscapesscripts')

from contnet_mm.datasets.check import check_parts
from contnet_mm.datasets.check.fixes import FixCommands
from contnet_mm.datasets.demo import DemoOptions

OPTIONS = DemoOptions(
    num_train=6, num_val=4, size=(96, 128), digits=(2, 4), digit_height=(28, 48), seed=1
)
FIX = FixCommands('fix images', 'fix annotations', 'fix labels', 'fix ground truth')


def faults(parts, **options):
    return [issue for issue in check_parts(parts, **options) if not issue.is_note]


def notes(parts):
    return [issue for issue in check_parts(parts) if issue.is_note]


def names_of(issues):
    """Return the names of the checks that found something."""
    return {issue.check for issue in issues}


def assert_found(parts, expected, said):
    """Assert which checks find something, and what one of them shows as an example."""
    issues = faults(parts)
    assert names_of(issues) == expected
    assert any(said in example for issue in issues for example in issue.examples)


def cut(path):
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path, change):
    """Change the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def coco_config(demo, **changes):
    """Return a config that validates on the demo's COCO layout, with changes by dotted key."""
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
