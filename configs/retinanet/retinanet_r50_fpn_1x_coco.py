_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2))
