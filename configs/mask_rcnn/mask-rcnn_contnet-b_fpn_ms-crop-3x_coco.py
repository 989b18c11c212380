_base_ = './mask-rcnn_contnet-m_fpn_ms-crop-3x_coco.py'
weights = dict(type='Pretrained', checkpoint='checkpoints/contnet-b_in1k.pth')

model = dict(
    backbone=dict(arch='base', init_cfg=weights),
)
