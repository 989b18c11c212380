_base_ = './contnet-m_8xb32_in1k.py'

model = dict(backbone=dict(arch='small'))
