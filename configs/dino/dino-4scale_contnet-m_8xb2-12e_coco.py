_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)
weights = dict(type='Pretrained', checkpoint='checkpoints/contnet-m_in1k.pth')

model = dict(
    backbone=dict(
        _delete_=True,
        type='contnet_mm.ConTNet',
        arch='medium',
        out_indices=(1, 2, 3),
        norm_eval=True,
        init_cfg=weights,
    ),
    neck=dict(in_channels=[256, 512, 1024]),
)
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2))
# Without `enable`, which the parent lacks, MMDetection refuses --auto-scale-lr.
auto_scale_lr = dict(enable=False)
