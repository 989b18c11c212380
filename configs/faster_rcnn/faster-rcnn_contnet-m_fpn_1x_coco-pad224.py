_base_ = './faster-rcnn_contnet-m_fpn_1x_coco.py'

# The official network takes multiples of 224 alone; the published FLOPs belong to such images.
model = dict(data_preprocessor=dict(pad_size_divisor=224))
