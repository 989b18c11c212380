_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/demo_coco_instance.py',
    '../_base_/schedules/demo_4e.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)

# From scratch: nothing is frozen and batch norm learns its statistics.
# Neck and heads are thinner than COCO needs, so that a laptop trains them in minutes.
model = dict(
    data_preprocessor=dict(pad_size_divisor=1),  # ConTNet takes any size
    backbone=dict(_delete_=True, type='contnet_mm.ConTNet', arch='tiny'),
    neck=dict(
        in_channels=[96, 192, 384, 768], out_channels=96, num_outs=4, norm_cfg=dict(type='BN')
    ),
    rpn_head=dict(
        in_channels=96, feat_channels=96, anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=96),
        bbox_head=dict(in_channels=96, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=96),
        mask_head=dict(in_channels=96, num_convs=1, conv_out_channels=64, num_classes=10),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=32))
    ),
    # One digit has one class: a second box of another class at its place is wrong.
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200), rcnn=dict(nms=dict(class_agnostic=True))),
)

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2, save_best='coco/segm_mAP'),
)
