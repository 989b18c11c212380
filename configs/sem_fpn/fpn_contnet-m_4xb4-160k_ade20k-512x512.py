_base_ = 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)
weights = dict(type='Pretrained', checkpoint='checkpoints/contnet-m_in1k.pth')

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='contnet_mm.ConTNet',
        arch='medium',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=weights,
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)

# (4 GPUs) x (4 images per GPU)
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2))
