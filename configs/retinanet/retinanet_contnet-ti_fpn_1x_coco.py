_base_ = './retinanet_contnet-m_fpn_1x_coco.py'
weights = dict(type='Pretrained', checkpoint='checkpoints/contnet-ti_in1k.pth')

model = dict(
    backbone=dict(arch='tiny', init_cfg=weights),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
