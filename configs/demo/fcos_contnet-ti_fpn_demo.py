_base_ = [
    '../_base_/datasets/demo_coco.py',
    '../_base_/schedules/demo_4e.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)

# From scratch: nothing is frozen and batch norm learns its statistics.
# Neck and heads are thinner than COCO needs, so that a laptop trains them in minutes.
model = dict(
    type='FCOS',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(type='contnet_mm.ConTNet', arch='tiny'),
    neck=dict(
        type='FPN',
        in_channels=[96, 192, 384, 768],
        out_channels=96,
        start_level=1,
        num_outs=3,
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        type='FCOSHead',
        num_classes=10,
        in_channels=96,
        feat_channels=96,
        stacked_convs=2,
        strides=[8, 16, 32],
        # The digits are 24 to 60 pixels high.
        regress_ranges=((-1, 24), (24, 48), (48, 1e8)),
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        conv_bias=True,
        norm_cfg=dict(type='GN', num_groups=16),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
    ),
    # One digit has one class: a second box of another class at its place is wrong.
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.6, class_agnostic=True),
        max_per_img=100,
    ),
)

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2, save_best='coco/bbox_mAP'),
)
