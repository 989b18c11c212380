_base_ = './pspnet_contnet-m-d8_4xb2-80k_cityscapes-512x1024.py'

# One GPU: half the batch and half the learning rate; 80k iterations see as many images as 40k do
# on four GPUs. The Runner turns SyncBN into BN by itself.
train_dataloader = dict(batch_size=4, num_workers=4)
optim_wrapper = dict(optimizer=dict(lr=0.005))
auto_scale_lr = dict(base_batch_size=4)
