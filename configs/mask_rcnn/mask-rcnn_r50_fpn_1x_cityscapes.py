_base_ = './mask-rcnn_r50_fpn_coco-pretrained_1x_cityscapes.py'

# From ImageNet weights, as ConT-M beside it; the parent starts from a COCO detector.
model = dict(
    backbone=dict(
        init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='torchvision://resnet50')
    )
)
load_from = None
