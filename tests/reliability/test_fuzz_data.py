"""Damaged images and annotations: found and named where they are bad, and nothing crashes."""

import shutil
from dataclasses import replace

import pytest

from contnet_mm.datasets.check import check_parts
from contnet_mm.datasets.check.from_config import make_part
from contnet_mm.datasets.check.issues import describe
from contnet_mm.datasets.own.convert import write_parts
from contnet_mm.datasets.own.data import choose_parts
from contnet_mm.datasets.own.read import read_data
from tests.reliability.data_mutants import KINDS, damage, write_bases
from tests.reliability.forks import assert_all_pass

TOTAL = 500
CLASSES = ('cat', 'dog', 'owl')


def parts_of(kind, root):
    """Return what a config of each kind reads; the check of check_dataset."""
    if kind == 'coco':
        pipeline = [dict(type='LoadAnnotations', with_mask=True)]
        return [
            make_part(
                part,
                dict(
                    type='mmdet.CocoDataset',
                    data_root=root,
                    ann_file=f'annotations/instances_{part}.json',
                    data_prefix=dict(img=part),
                    metainfo=dict(classes=CLASSES),
                    pipeline=pipeline,
                ),
            )
            for part in ('train', 'val')
        ]
    if kind == 'masks':
        return [
            make_part(
                part,
                dict(
                    type='mmseg.BaseSegDataset',
                    data_root=root,
                    data_prefix=dict(img_path=f'images/{part}', seg_map_path=f'masks/{part}'),
                    img_suffix='.png',
                    metainfo=dict(classes=('ground', *CLASSES)),
                ),
            )
            for part in ('train', 'val')
        ]
    return [
        make_part(
            part,
            dict(
                type='mmpretrain.CustomDataset',
                data_root=root,
                data_prefix=part,
                metainfo=dict(classes=CLASSES),
            ),
        )
        for part in ('train', 'val')
    ]


def issues_of(kind, root, out):
    """Return all that is found: lines, and those that are to be fixed."""
    found = []
    if kind in ('coco', 'masks', 'folders'):
        found += check_parts(parts_of(kind, root), all_images=True)
    if kind in ('coco', 'voc', 'yolo'):
        try:
            found += read_own(root, out)
        except ValueError as error:
            return [str(error)], [str(error)]
    for issue in found:
        describe(issue).encode('utf-8')  # as it is printed
    lines = [describe(replace(issue, examples=issue.examples)) for issue in found]
    return lines, [describe(issue) for issue in found if not issue.is_note]


def read_own(root, out):
    data = read_data('mmdet', root)
    chosen = choose_parts(data, None, None)
    unread = [issue for part in chosen.values() for issue in part.issues]
    settings = write_parts('mmdet', data, chosen, out)
    parts = [
        make_part(role, {**setting, 'metainfo': dict(classes=data.classes)}, 'mmdet')
        for role, setting in settings.items()
    ]
    return [*data.report.issues, *unread, *check_parts(parts, all_images=True)]


class Check:
    def __init__(self, folder):
        self.folder = folder
        self.bases = write_bases(folder / 'bases')
        for kind, root in self.bases.items():
            assert not issues_of(kind, root, folder / 'own')[1], kind
            shutil.rmtree(folder / 'own', ignore_errors=True)

    def __call__(self, number, watch):
        kind = KINDS[number % len(KINDS)]
        root, out = self.folder / 'data', self.folder / 'own'
        shutil.copytree(self.bases[kind], root)
        name = path = ''
        try:
            name, path, must = damage(kind, root, number)
            watch.seen.clear()
            watch.active = True
            lines, faults = issues_of(kind, root, out)
            watch.active = False
            seen = [line for line in watch.seen if str(out) not in line]
            assert not seen, f'does more than reading: {seen}'
            if must:
                assert faults, f'nothing is found: {lines}'
                names = (path.stem, path.parent.name, '[train]')  # a part, with its entries
                named = [line for line in faults if any(name in line for name in names)]
                assert named, f'{path.name} is not named: {faults}'
            if must is False:
                assert not faults, f'good data is refused: {faults}'
            return f'{kind}: {"found" if faults else "good"}'
        except Exception as error:
            error.args = (f'{kind}, {name}, {path}: {error}',)
            raise
        finally:
            shutil.rmtree(root)
            shutil.rmtree(out, ignore_errors=True)


def test_some_damage_to_data_is_found_and_named(tmp_path):
    assert_all_pass(Check(tmp_path), range(30), tmp_path)


@pytest.mark.slow
def test_damage_to_data_is_found_and_named(tmp_path):
    assert_all_pass(Check(tmp_path), range(TOTAL), tmp_path)
