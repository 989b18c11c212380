_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    # Images resized by PIL, as in the official script.
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_resize.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='contnet_mm.ConTNet', arch='medium', out_indices=(3,)),
    head=dict(in_channels=1024),
)
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2))
