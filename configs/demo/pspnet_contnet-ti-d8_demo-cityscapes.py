_base_ = [
    'mmseg::_base_/models/pspnet_r50-d8.py',
    '../_base_/datasets/demo_cityscapes.py',
    'mmseg::_base_/schedules/schedule_20k.py',
    'mmseg::_base_/default_runtime.py',
]
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)

# From scratch: nothing is frozen and batch norm learns its statistics.
# Heads are thinner than Cityscapes needs, so that a laptop trains them in minutes.
model = dict(
    data_preprocessor=dict(size=(112, 112)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='contnet_mm.ConTNet',
        arch='tiny',
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
    ),
    decode_head=dict(in_channels=768, channels=64),
    auxiliary_head=dict(in_channels=384, channels=64),
)

train_cfg = dict(max_iters=750, val_interval=250)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=100, end=750),
]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(
        type='contnet_mm.CheckpointHook', interval=250, max_keep_ckpts=2, save_best='mIoU'
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=8)
