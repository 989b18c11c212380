_base_ = './retinanet_contnet-m_fpn_1x_coco.py'
weights = dict(type='Pretrained', checkpoint='checkpoints/contnet-b_in1k.pth')

model = dict(
    backbone=dict(arch='base', init_cfg=weights),
)
