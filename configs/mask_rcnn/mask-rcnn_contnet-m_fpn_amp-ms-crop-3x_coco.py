_base_ = './mask-rcnn_contnet-m_fpn_ms-crop-3x_coco.py'

# Mixed precision. bfloat16 has the range of float32: it overflows less easily than float16.
optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16')
