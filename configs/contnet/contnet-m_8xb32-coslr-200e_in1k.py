_base_ = './resnet50_8xb32-coslr-200e_in1k.py'
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='contnet_mm.ConTNet', arch='medium', out_indices=(3,)),
    head=dict(in_channels=1024),
)
