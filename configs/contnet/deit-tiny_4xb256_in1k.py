_base_ = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook'))
