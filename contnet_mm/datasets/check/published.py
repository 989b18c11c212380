"""The layouts of the published data sets and of the demo data."""

from __future__ import annotations

from pathlib import Path

from .fixes import NUM_IMAGES, find_demo
from .from_config import make_part
from .parts import Part

KINDS = tuple(NUM_IMAGES)
DEMO_CLASSES = tuple('0123456789')


def parts_of_folder(kind: str, root: str | Path) -> list[Part]:
    """Return what a folder should hold.

    The demo data is known by its settings.json, and has counts and names of its own.

    Args:
        kind: One of ``KINDS``.
        root: Folder of the data set, such as data/coco.

    Raises:
        ValueError: If the kind is not known or the folder does not exist.
    """
    if kind not in KINDS:
        raise ValueError(f'kind of data set is {kind!r}, must be one of {", ".join(KINDS)}')
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f'{root} is no folder; name the one that holds the data set')
    names, shared = NUM_IMAGES[kind], {'data_root': root}
    if find_demo(root):
        names = ('train', 'val')
        if kind != 'cityscapes':  # whose evaluator knows its own classes only
            shared['metainfo'] = {'classes': DEMO_CLASSES}
    parts = []
    for name in names:
        metric = [dict(type='CityScapesMetric')] if (kind, name) == ('cityscapes', 'val') else []
        for title, dataset in _datasets(kind, name).items():
            parts.append(make_part(title, {**shared, **dataset}, evaluators=metric))
    return parts


def _datasets(kind: str, name: str) -> dict[str, dict]:
    """Return what the libraries' configs say of a part, by what to call it."""
    masks = [dict(type='LoadAnnotations', with_mask=True)]
    coco = dict(
        type='mmdet.CocoDataset',
        ann_file=f'annotations/instances_{name}.json',
        data_prefix=dict(img=name),
        pipeline=masks,
    )
    semantic = dict(
        type='mmseg.CityscapesDataset',
        data_prefix=dict(img_path=f'leftImg8bit/{name}', seg_map_path=f'gtFine/{name}'),
    )
    instances = dict(
        type='mmdet.CityscapesDataset',
        ann_file=f'annotations/instancesonly_filtered_gtFine_{name}.json',
        data_prefix=dict(img=f'leftImg8bit/{name}'),
        pipeline=masks,
    )
    return {
        'coco': {name: coco},
        'cityscapes': {f'{name} (semantic)': semantic, f'{name} (instances)': instances},
        'imagenet': {name: dict(type='mmpretrain.ImageNet', split=name)},
    }[kind]
