_base_ = 'mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py'

# (8 GPUs) x (1 image per GPU); the parent's 16 is for COCO.
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=dict(type='contnet_mm.CheckpointHook', max_keep_ckpts=2))
# A temporary folder for what cityscapesScripts reads: in the parent's, runs delete each other's.
val_evaluator = [
    dict(
        type='CocoMetric',
        ann_file='data/cityscapes/annotations/instancesonly_filtered_gtFine_val.json',
        metric=['bbox', 'segm'],
    ),
    dict(type='CityScapesMetric', outfile_prefix=None, seg_prefix='data/cityscapes/gtFine/val'),
]
test_evaluator = val_evaluator
