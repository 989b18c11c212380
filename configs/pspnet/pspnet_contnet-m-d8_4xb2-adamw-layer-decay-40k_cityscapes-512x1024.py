_base_ = './pspnet_contnet-m-d8_4xb2-40k_cityscapes-512x1024.py'

# Blocks near the image learn slower: 0.8 of the next one's rate, eight blocks in ConT-M. Hence a
# higher rate at the head; both are ours and not tuned.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    constructor='contnet_mm.LearningRateDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        layer_decay_rate=0.8, norm_decay_mult=0.0, custom_keys={'position': dict(decay_mult=0.0)}
    ),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=40000, by_epoch=False),
]
