_base_ = './faster-rcnn_contnet-m_fpn_adamw-1x_coco.py'

# Blocks near the image learn slower: 0.8 of the next one's rate, eight blocks in ConT-M. Hence a
# higher rate at the head; both are ours and not tuned.
optim_wrapper = dict(
    constructor='contnet_mm.LearningRateDecayOptimWrapperConstructor',
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(layer_decay_rate=0.8),
)
