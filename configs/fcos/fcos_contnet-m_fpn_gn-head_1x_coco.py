_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)
weights = dict(type='Pretrained', checkpoint='checkpoints/contnet-m_in1k.pth')

model = dict(
    # The parent's weights are Caffe's: BGR pixels, not scaled.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        _delete_=True,
        type='contnet_mm.ConTNet',
        arch='medium',
        norm_eval=True,
        init_cfg=weights,
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)

# The parent trains biases at twice the rate and without decay, which a ResNet has none of.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))))
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2))
