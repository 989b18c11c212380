_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)
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
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2))
