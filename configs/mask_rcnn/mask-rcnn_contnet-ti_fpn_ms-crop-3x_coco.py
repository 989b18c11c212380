_base_ = './mask-rcnn_contnet-m_fpn_ms-crop-3x_coco.py'
weights = dict(type='Pretrained', checkpoint='checkpoints/contnet-ti_in1k.pth')

model = dict(
    backbone=dict(arch='tiny', init_cfg=weights),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
