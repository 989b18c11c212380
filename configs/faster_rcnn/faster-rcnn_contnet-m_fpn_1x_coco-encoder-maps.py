_base_ = './faster-rcnn_contnet-m_fpn_1x_coco.py'

# Narrower maps, from inside the blocks: cheaper, and what older checkpoints of detectors need.
model = dict(
    backbone=dict(feature_location='encoder'),
    neck=dict(in_channels=[64, 128, 256, 1024]),
)
