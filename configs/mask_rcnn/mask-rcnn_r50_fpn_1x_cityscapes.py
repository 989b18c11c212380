_base_ = 'mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py'

# From ImageNet weights, as ConT-M beside it; the parent starts from a COCO detector.
model = dict(
    backbone=dict(
        init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='torchvision://resnet50')
    )
)
load_from = None
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook'))
