_base_ = './mask-rcnn_contnet-ti_fpn_demo.py'

model = dict(roi_head=dict(bbox_head=dict(num_classes=8), mask_head=dict(num_classes=8)))

# Made by tools/make_demo_data.py: the digits 0 to 7 stand for the eight classes with instances.
data_root = 'data/demo/cityscapes/'
train_dataloader = dict(
    dataset=dict(
        type='CityscapesDataset',
        data_root=data_root,
        metainfo=None,
        ann_file='annotations/instancesonly_filtered_gtFine_train.json',
        data_prefix=dict(img='leftImg8bit/train/'),
    )
)
val_dataloader = dict(
    dataset=dict(
        type='CityscapesDataset',
        data_root=data_root,
        metainfo=None,
        ann_file='annotations/instancesonly_filtered_gtFine_val.json',
        data_prefix=dict(img='leftImg8bit/val/'),
    )
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(
        type='CocoMetric',
        ann_file=data_root + 'annotations/instancesonly_filtered_gtFine_val.json',
        metric=['bbox', 'segm'],
    ),
    dict(type='CityScapesMetric', outfile_prefix=None, seg_prefix=data_root + 'gtFine/val'),
]
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='cityscapes/mAP'))
