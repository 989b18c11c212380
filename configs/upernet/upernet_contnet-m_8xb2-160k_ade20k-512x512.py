_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)
checkpoint_file = None  # the parent's Swin
weights = dict(type='Pretrained', checkpoint='checkpoints/contnet-m_in1k.pth')

model = dict(
    backbone=dict(
        _delete_=True,
        type='contnet_mm.ConTNet',
        arch='medium',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=weights,
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)

optim_wrapper = dict(
    # Neither norms nor position tables decay.
    paramwise_cfg=dict(
        _delete_=True, norm_decay_mult=0.0, custom_keys={'position': dict(decay_mult=0.0)}
    ),
    clip_grad=dict(max_norm=1.0),
)

# (8 GPUs) x (2 images per GPU)
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2))
