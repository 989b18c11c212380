_base_ = 'mmdet::_base_/datasets/coco_detection.py'

# Written by `python -m contnet_mm own_data`: see configs/bccd/README.md.
data_root = 'data/bccd_data/'
data_prefix = dict(img='../bccd/JPEGImages/')
metainfo = dict(
    classes=('Platelets', 'RBC', 'WBC'),
    palette=[(230, 46, 46), (46, 230, 46), (46, 46, 230)],
)
# A smear has no right way up.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(320, 240), keep_ratio=True),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 240), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='train.json',
        data_prefix=data_prefix,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='val.json',
        data_prefix=data_prefix,
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=8,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='test.json',
        data_prefix=data_prefix,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(ann_file=data_root + 'val.json', classwise=True)
test_evaluator = dict(ann_file=data_root + 'test.json', classwise=True)
