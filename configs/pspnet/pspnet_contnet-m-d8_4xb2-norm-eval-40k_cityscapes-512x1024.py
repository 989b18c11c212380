_base_ = './pspnet_contnet-m-d8_4xb2-40k_cityscapes-512x1024.py'

# Batch norms of the backbone keep the statistics that come with its weights.
model = dict(backbone=dict(norm_eval=True))
