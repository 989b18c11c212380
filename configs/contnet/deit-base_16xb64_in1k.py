_base_ = 'mmpretrain::deit/deit-base_16xb64_in1k.py'
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2))
