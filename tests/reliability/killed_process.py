"""One of two processes of a training, for ``torchrun``: the second kills itself soon."""

import os
import signal
import sys

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tests.reliability.soak import ARCH
from tests.tiny_runner import TinyClassifier

KILLED_AT = 5


class Kill(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter == KILLED_AT:
            print('killed now', flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    torch.cuda.set_device = lambda *_: None  # the launcher of MMEngine counts on GPUs
    torch.set_num_threads(1)
    torch.manual_seed(0)
    wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None)
    Runner(
        model=TinyClassifier(ARCH),
        work_dir=sys.argv[1],
        launcher='pytorch',
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.randn(3, 40, 48), labels=i % 2) for i in range(4)],
            batch_size=2,
            sampler=dict(type='InfiniteSampler'),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=100_000),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        custom_hooks=[Kill()],
        cfg=dict(model_wrapper_cfg=wrapper),
    ).train()


if __name__ == '__main__':
    main()
