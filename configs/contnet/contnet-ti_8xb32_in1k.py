_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='contnet_mm.ConTNet', arch='tiny', out_indices=(3,)),
    head=dict(in_channels=768),
)
