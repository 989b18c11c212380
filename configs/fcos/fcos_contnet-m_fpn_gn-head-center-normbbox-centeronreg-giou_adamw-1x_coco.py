_base_ = './fcos_contnet-m_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    # Neither norms nor position tables decay; biases have no rate of their own.
    paramwise_cfg=dict(
        _delete_=True, norm_decay_mult=0.0, custom_keys={'position': dict(decay_mult=0.0)}
    ),
    clip_grad=dict(_delete_=True, max_norm=1.0),
)
