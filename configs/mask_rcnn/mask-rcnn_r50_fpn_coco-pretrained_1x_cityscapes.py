_base_ = 'mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py'

auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook'))
