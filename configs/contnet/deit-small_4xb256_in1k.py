_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook'))
