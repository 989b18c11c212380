_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/bccd_18e.py',
    'mmdet::_base_/default_runtime.py',
]

# From scratch: nothing is frozen and batch norm learns its statistics.
# Neck and heads are thinner than COCO needs, and the anchors half as large: platelets are 20 pixels
# wide here.
model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(
        in_channels=[64, 128, 256, 512], out_channels=96, num_outs=4, norm_cfg=dict(type='BN')
    ),
    bbox_head=dict(
        num_classes=3,
        in_channels=96,
        feat_channels=96,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=16),
        anchor_generator=dict(octave_base_scale=2, strides=[8, 16, 32, 64]),
    ),
)

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2)
)
