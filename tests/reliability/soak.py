"""Train for thousands of steps at random sizes and watch the memory of the process.

``python -m tests.reliability.soak`` prints the memory of the process, and what it grows by per step
once all caches are full.

oneDNN computes torch's convolutions on a CPU and keeps a program for each size: 1,024 of them, and
something more for each size that is new. So sizes come again here; ``--new-sizes`` shows what
happens otherwise, ``--torch-alone`` that a network without code of ours grows alike, and
``--no-onednn`` that ours does not by itself.
"""

import argparse
import ctypes
import gc
import re
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from tests.tiny_runner import TinyClassifier

ARCH = dict(
    base_channels=8,
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 2, 4),
    feedforward_channels=(12, 16, 24, 32),
    window_sizes=((7, 14), (7, 14), (7, 14), (7, 7)),
    drop_rates=(0.0,) * 4,
    last_drop_rate=0.0,
)
WARM_UP = 200  # steps until caches are full
EVERY = 20  # steps between two readings
NUM_SIZES = 40


def memory_used():
    """Return the memory of this process in bytes, without what could be given back.

    Pages of files, which the kernel drops and reads again as it likes, do not count; what it has
    swapped out does.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library keeps what is free as it likes
        ctypes.CDLL('libc.so.6').malloc_trim(0)
    status = Path('/proc/self/status').read_text()
    fields = dict(re.findall(r'^(\w+):\s+(\d+) kB$', status, re.M))
    return 1024 * (int(fields['RssAnon']) + int(fields['VmSwap']))


class RandomSizes(Dataset):
    """Images of 40 to 160 pixels a side.

    Args:
        length: Number of images.
        num_sizes: Number of sizes among them.
    """

    def __init__(self, length, num_sizes):
        self.length, self.num_sizes = length, num_sizes

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index % self.num_sizes)
        height, width = torch.randint(40, 161, (2,), generator=generator).tolist()
        images = torch.randn(3, height, width, generator=generator)
        return dict(inputs=images, labels=index % 2)


class ReadMemory(Hook):
    """Read the memory of the process every few iterations."""

    def __init__(self):
        self.readings = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if (runner.iter + 1) % EVERY == 0:
            self.readings.append((runner.iter + 1, memory_used()))


class TorchAlone(TinyClassifier):
    """The same with convolutions and batch norms of torch as the backbone."""

    def __init__(self, arch):
        super().__init__(arch)
        layers, widths = [], (3, 8, 16, 32, 64)
        for width, out in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(width, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU()]
            layers += [nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out), nn.ReLU()]
        self.backbone = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 2)

    def forward(self, inputs, labels, mode='tensor'):
        logits = self.head(self.backbone(inputs).mean((2, 3)))
        return dict(loss=nn.functional.cross_entropy(logits, labels)) if mode == 'loss' else logits


def train(model, steps, num_sizes):
    """Train by MMEngine's Runner; return the readings, steps and bytes, [n, 2]."""
    memory = ReadMemory()
    with tempfile.TemporaryDirectory() as folder:
        Runner(
            model=model,
            work_dir=folder,
            train_dataloader=dict(
                dataset=RandomSizes(steps, num_sizes),
                batch_size=1,
                sampler=dict(type='DefaultSampler', shuffle=True),
                collate_fn=dict(type='default_collate'),
            ),
            train_cfg=dict(by_epoch=False, max_iters=steps),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
            custom_hooks=[memory],
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=500),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=steps),
            ),
            log_level='WARNING',
        ).train()
    return np.array(memory.readings)


def slope(readings):
    """Return the growth per step after the warm-up, by least squares, and its standard error."""
    step, size = readings[readings[:, 0] > WARM_UP].astype(float).T
    step = step - step.mean()
    rate = (step @ size) / (step @ step)
    rest = size - size.mean() - rate * step
    return rate, float(np.sqrt(rest @ rest / (len(step) - 2) / (step @ step)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=2000)
    parser.add_argument('--position', default='absolute')
    parser.add_argument('--with-cp', action='store_true')
    parser.add_argument('--new-sizes', action='store_true', help='let no size come again')
    parser.add_argument('--no-onednn', action='store_true', help='compute without oneDNN')
    parser.add_argument('--torch-alone', action='store_true', help='train a network of torch')
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options = dict(position=args.position, with_cp=args.with_cp)
    model = TorchAlone(ARCH) if args.torch_alone else TinyClassifier(ARCH, **options)
    with torch.backends.mkldnn.flags(enabled=not args.no_onednn):
        readings = train(model, args.steps, args.steps if args.new_sizes else NUM_SIZES)
    for step, size in readings:
        print(f'{step:6d} {size / 2**20:9.2f} MiB')
    rate, error = slope(readings)
    print(f'slope {rate:.1f} bytes per step, standard error {error:.1f}')


if __name__ == '__main__':
    main()
