_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py'
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)
pretrained = None  # the parent's Swin
weights = dict(type='Pretrained', checkpoint='checkpoints/contnet-m_in1k.pth')

model = dict(
    backbone=dict(
        _delete_=True,
        type='contnet_mm.ConTNet',
        arch='medium',
        norm_eval=True,
        init_cfg=weights,
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)

optim_wrapper = dict(
    # Neither norms nor position tables decay.
    paramwise_cfg=dict(
        _delete_=True, norm_decay_mult=0.0, custom_keys={'position': dict(decay_mult=0.0)}
    ),
    clip_grad=dict(max_norm=1.0),
)
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2))
