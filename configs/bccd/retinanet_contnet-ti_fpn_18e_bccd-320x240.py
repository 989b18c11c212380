_base_ = './retinanet_r18_fpn_18e_bccd-320x240.py'
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='contnet_mm.ConTNet', arch='tiny'),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
