"""Trainings of seconds: the demo's configs with a thin network and a few images."""

import copy
import functools
import itertools
import json
import multiprocessing

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.datasets.demo import DemoOptions, make_demo_data
from tests.conftest import THIN_ARCH
from tests.helpers import ROOT

NUM_IMAGES = 8
EPOCHS, STEPS = 3, 4  # iterations in an epoch
# A detector, a two-stage one with masks, a segmentor (which trains by iterations), a classifier.
FAMILIES = {
    'retinanet': 'retinanet_contnet-ti_fpn_demo',
    'mask_rcnn': 'mask-rcnn_contnet-ti_fpn_demo',
    'pspnet': 'pspnet_contnet-ti-d8_demo-cityscapes',
    'classifier': 'contnet-ti_demo-imagenet',
}
CHANNELS = [16, 32, 64, 128]
THIN_DETECTOR = {'neck': dict(in_channels=CHANNELS, out_channels=16)}
THIN = {
    'retinanet': THIN_DETECTOR | {'bbox_head': dict(in_channels=16, feat_channels=16)},
    'mask_rcnn': THIN_DETECTOR
    | {
        'rpn_head': dict(in_channels=16, feat_channels=16),
        'roi_head': dict(
            bbox_roi_extractor=dict(out_channels=16),
            bbox_head=dict(in_channels=16, fc_out_channels=32),
            mask_roi_extractor=dict(out_channels=16),
            mask_head=dict(in_channels=16, conv_out_channels=16),
        ),
    },
    'pspnet': {
        'decode_head': dict(in_channels=128, channels=8),
        'auxiliary_head': dict(in_channels=64, channels=8),
    },
    'classifier': {'head': dict(in_channels=128)},
}
# What a clock decides, and what names a run.
BY_THE_CLOCK = ('time', 'data_time', 'memory', 'eta')
BATCHES = {'classifier': 12}  # of digits, of which images hold several
numbers = itertools.count()
parse = functools.cache(Config.fromfile)


class InterruptedTraining(Exception):
    """Ends a training as a signal would, but in this process."""


@HOOKS.register_module(force=True)
class InterruptHook(Hook):
    """Interrupts a training when an iteration is done, before anything is saved."""

    priority = 'VERY_HIGH'

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.iteration:
            raise InterruptedTraining(f'interrupted in iteration {runner.iter}')


def make_data(folder):
    """Make the demo's data in a folder, from which the trainings then have to start."""
    make_demo_data(folder / 'data' / 'demo', DemoOptions(num_train=NUM_IMAGES, num_val=4))


def make_config(family, work_dir, num_workers=0, **options):
    """Return a config."""
    config = copy.deepcopy(parse(ROOT / 'configs' / 'demo' / f'{FAMILIES[family]}.py'))
    loader = dict(num_workers=num_workers, persistent_workers=num_workers > 0)
    config.model.backbone.arch = dict(THIN_ARCH, drop_rates=(0.1,) * 4)
    config.merge_from_dict(dict(model=THIN[family], work_dir=str(work_dir)))
    config.merge_from_dict(dict.fromkeys(['train_dataloader', 'val_dataloader'], loader))
    config.merge_from_dict(
        {
            'train_dataloader.batch_size': BATCHES.get(family, NUM_IMAGES // STEPS),
            'default_hooks.logger.interval': 1,
            'log_level': 'WARNING',
        }
    )
    if config.default_scope == 'mmseg':
        config.merge_from_dict(
            {
                'train_cfg.max_iters': EPOCHS * STEPS,
                'train_cfg.val_interval': STEPS,
                'default_hooks.checkpoint.interval': STEPS,
            }
        )
    else:
        config.train_cfg.max_epochs = EPOCHS
    config.randomness = dict(seed=0)
    config.merge_from_dict(options)
    return config


def train(config, interrupt=None, resume=False):
    """Train; with a number, until that iteration is done."""
    config = copy.deepcopy(config)
    config.resume = resume
    # Of the same name there is one logger and one visualizer in a process.
    config.experiment_name = config.visualizer.name = f'training_{next(numbers)}'
    if interrupt is not None:
        config.custom_hooks = [dict(type='mmengine.InterruptHook', iteration=interrupt)]
    try:
        runner = Runner.from_cfg(config)
        runner.train()
    finally:
        for child in multiprocessing.active_children():
            child.terminate()  # PyTorch waits for seconds for those that load data
    return runner


def plain(value):
    """Return a value as text and tensors that can be compared."""
    if isinstance(value, HistoryBuffer):
        return [array.tolist() for array in value.data]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def differences(found, expected, path=''):
    """List where two nested values differ in any bit."""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = [*expected, *(key for key in found if key not in expected)]
        return [
            line
            for key in keys
            for line in differences(found.get(key), expected.get(key), f'{path}/{key}')
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        return [
            line
            for i, pair in enumerate(zip(found, expected, strict=True))
            for line in differences(*pair, f'{path}/{i}')
        ]
    if isinstance(expected, torch.Tensor):
        equal = isinstance(found, torch.Tensor) and torch.equal(found, expected)
    else:
        equal = type(found) is type(expected) and repr(found) == repr(expected)
    return [] if equal else [path]


def state_of(work_dir):
    """Return weights, optimizer, schedules and log history of the last checkpoint."""
    path = (work_dir / 'last_checkpoint').read_text()
    checkpoint = read_checkpoint(path)
    history = checkpoint['message_hub']['log_scalars']
    values = {key: value for key, value in history.items() if not key.endswith(BY_THE_CLOCK)}
    parts = {key: checkpoint[key] for key in ('state_dict', 'optimizer', 'param_schedulers')}
    return plain(parts | dict(history=values))


def logged(work_dir):
    """Return the values that were logged for each step, the last time that it was done."""
    values = {}
    for path in sorted(
        work_dir.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime
    ):
        for line in map(json.loads, path.read_text().splitlines()):
            key = ('train', line['iter']) if 'iter' in line else ('val', line['step'])
            values[key] = {k: v for k, v in line.items() if k not in BY_THE_CLOCK}
    return values
