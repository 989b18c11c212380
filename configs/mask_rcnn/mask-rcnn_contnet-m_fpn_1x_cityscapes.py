_base_ = 'mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py'
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)
weights = dict(type='Pretrained', checkpoint='checkpoints/contnet-m_in1k.pth')

model = dict(
    backbone=dict(
        _delete_=True,
        type='contnet_mm.ConTNet',
        arch='medium',
        feature_location='encoder',
        frozen_stages=1,
        norm_eval=True,
        init_cfg=weights,
    ),
    neck=dict(in_channels=[64, 128, 256, 1024]),
)

# The parent starts from a detector with ResNet-50: none of it would fit.
load_from = None
# (8 GPUs) x (1 image per GPU); the parent's 16 is for COCO.
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook'))
