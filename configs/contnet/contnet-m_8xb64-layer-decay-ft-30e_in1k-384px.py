_base_ = './contnet-m_8xb64-strong_in1k.py'
weights = 'checkpoints/contnet-m_in1k.pth'

# Fine-tunes a trained classifier on larger images; the file must hold its head, as that of
# `tools/convert_checkpoint.py --classifier` does. Blocks near the image learn slower: 0.8 of the
# next one's rate, eight blocks in ConT-M.
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=weights)),
    head=dict(init_cfg=dict(type='Pretrained', checkpoint=weights, prefix='head.')),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=384, backend='pillow', interpolation='bilinear'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bilinear'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    constructor='LearningRateDecayOptimWrapperConstructor',
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.8),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=28,
        by_epoch=True,
        begin=2,
        end=30,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=30)
