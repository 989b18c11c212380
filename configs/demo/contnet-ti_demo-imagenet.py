_base_ = ['../_base_/datasets/demo_imagenet.py', 'mmpretrain::_base_/default_runtime.py']
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    backbone=dict(type='contnet_mm.ConTNet', arch='tiny', out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=768,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1,),
    ),
)

train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05), clip_grad=dict(max_norm=10.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', T_max=2, begin=0, end=2, by_epoch=True, convert_to_iter_based=True
    ),
]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2, save_best='accuracy/top1'),
)
auto_scale_lr = dict(base_batch_size=64)
