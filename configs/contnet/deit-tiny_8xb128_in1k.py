_base_ = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'
train_dataloader = dict(batch_size=128)  # on twice as many GPUs
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2))
