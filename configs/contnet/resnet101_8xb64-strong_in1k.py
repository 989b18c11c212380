_base_ = './resnet50_8xb64-strong_in1k.py'

model = dict(backbone=dict(depth=101))
