_base_ = './mask-rcnn_contnet-m_fpn_1x_cityscapes.py'

# The whole detector of mask-rcnn_contnet-m_fpn_1x_coco.py, but for the layers that name classes.
model = dict(backbone=dict(init_cfg=None))
load_from = 'checkpoints/mask-rcnn_contnet-m_fpn_1x_coco.pth'
