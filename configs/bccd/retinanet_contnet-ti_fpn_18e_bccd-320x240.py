_base_ = './retinanet_r18_fpn_18e_bccd-320x240.py'
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(pad_size_divisor=1),  # ConTNet takes any size
    backbone=dict(
        _delete_=True, type='contnet_mm.ConTNet', arch='tiny', feature_location='encoder'
    ),
    neck=dict(in_channels=[48, 96, 192, 768]),
)
