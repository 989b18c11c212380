"""Trainings of a tenth of a second that draw random numbers wherever real ones do."""

import itertools
import multiprocessing
import random

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from contnet_mm.checkpoint.read import read_checkpoint

NUM_SAMPLES, BATCH, EPOCHS = 10, 2, 3
LENGTH = NUM_SAMPLES // BATCH
numbers = itertools.count()


class Stop(Exception):
    """Stops a training as a signal would."""


class Noise(Dataset):
    """Draws from each generator that augmentations use."""

    def __len__(self):
        return NUM_SAMPLES

    def __getitem__(self, index):
        noise = [random.random(), np.random.rand(), float(torch.rand(()))]
        return dict(inputs=torch.tensor([index, *noise]))


class Regressor(BaseModel):
    """Draws numbers in its step as well."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1))

    def forward(self, inputs, mode='tensor'):
        shift = random.random() + np.random.rand()
        return dict(loss=(self.layers(inputs) - shift).square().mean())

    def val_step(self, data):
        return [self.layers[0].weight.sum()]


class Score(BaseMetric):
    """Is what a list says for each epoch, or as many iterations, whatever the weights are."""

    def __init__(self, scores):
        super().__init__()
        self.scores, self.runner = scores, None

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=self.scores[self.runner.iter // LENGTH - 1])


class StopAt(Hook):
    """Stops a training when a method of hooks is called for a certain epoch or iteration."""

    priority = 'VERY_HIGH'

    def __init__(self, method, when):
        setattr(self, method, self.stop)
        self.when = when

    def stop(self, runner, *args, **kwargs):
        if self.when(runner):
            raise Stop


def make_runner(
    work_dir,
    by_epoch=True,
    workers=0,
    stop=None,
    scores=(),
    resume=False,
    seed=None,
    data=None,
    launcher='none',
    diff_rank_seed=False,
    **options,
):
    loader = dict(
        dataset=data or Noise(),
        batch_size=BATCH,
        collate_fn=dict(type='default_collate'),
        num_workers=workers,
        persistent_workers=workers > 0,
        sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
    )
    metric, validation = Score(scores), {}
    if scores:
        val_loader = dict(loader, num_workers=0, persistent_workers=False)
        val_loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
        validation = dict(val_dataloader=val_loader, val_cfg=dict(), val_evaluator=[metric])
    length = dict(max_epochs=EPOCHS) if by_epoch else dict(max_iters=EPOCHS * LENGTH)
    interval = 1 if by_epoch else LENGTH
    hook = dict(type='contnet_mm.CheckpointHook', interval=interval, by_epoch=by_epoch)
    metric.runner = runner = Runner(
        model=Regressor(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=by_epoch, val_interval=interval, **length),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=dict(type='ExponentialLR', gamma=0.9, by_epoch=False),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=hook | options),
        custom_hooks=[stop] if stop else None,
        log_processor=dict(by_epoch=by_epoch),
        log_level='WARNING',
        experiment_name=f'training_{next(numbers)}',
        resume=resume,
        randomness=dict(seed=seed, diff_rank_seed=diff_rank_seed),
        launcher=launcher,
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        cfg=dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)),
        **validation,
    )
    return runner


def read_last(work_dir):
    return read_checkpoint((work_dir / 'last_checkpoint').read_text())


def weights_of(work_dir):
    return read_last(work_dir)['state_dict']


def losses_of(work_dir):
    return read_last(work_dir)['message_hub']['log_scalars']['train/loss'].data[0].tolist()


def assert_equal(found, expected):
    assert losses_of(found) == losses_of(expected)
    found, expected = weights_of(found), weights_of(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def train(work_dir, **options):
    torch.manual_seed(0)  # of the first weights alone
    try:
        make_runner(work_dir, **options).train()
    finally:
        for child in multiprocessing.active_children():
            child.terminate()  # PyTorch waits for seconds for those that load data
        for logger in MMLogger._instance_dict.values():
            for handler in [*logger.handlers]:
                logger.removeHandler(handler)
                handler.close()  # or a disk could not be unmounted


def interrupt(work_dir, method, when, **options):
    with pytest.raises(Stop):
        train(work_dir, stop=StopAt(method, when), **options)


def names_in(folder):
    return {path.name for path in folder.iterdir() if path.is_file() and path.suffix != '.py'}
