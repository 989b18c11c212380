_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2))
