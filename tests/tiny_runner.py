"""A model that MMEngine's Runner trains for two iterations."""

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from contnet_mm import ConTNet


class TinyClassifier(BaseModel):
    def __init__(self, arch, **options):
        super().__init__()
        self.backbone = ConTNet(arch, **options)
        self.head = nn.Linear(self.backbone.out_channels[-1], 2)

    def forward(self, inputs, labels, mode='tensor'):
        logits = self.head(self.backbone(inputs)[-1].mean((2, 3)))
        return dict(loss=nn.functional.cross_entropy(logits, labels)) if mode == 'loss' else logits


def train_briefly(work_dir, arch, options=(), **runner_cfg):
    """Train for two iterations; return the path of the checkpoint that the Runner wrote."""
    data = [dict(inputs=torch.randn(3, 40, 48), labels=i % 2) for i in range(4)]
    runner = Runner(
        model=TinyClassifier(arch, **dict(options)),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=data,
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        log_level='WARNING',
        experiment_name=work_dir.name,
        **runner_cfg,
    )
    runner.train()
    return work_dir / 'epoch_1.pth'
