"""The whole program with the real ``mim``, on a training of seconds: killed, and in parallel."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import ROOT

pytestmark = pytest.mark.slow

TABLE = 'mini'
# Kills its process group where the environment says; lets processes without GPUs work together.
HELPER = """
import os, signal
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

torch.cuda.set_device = lambda *_: None
replace = os.replace

def kill_at(point):
    if os.environ.get('KILL_AT') == point:
        os.killpg(0, signal.SIGKILL)

def replace_or_die(source, target):
    if os.environ.get('KILL_AT') == 'writing' and str(target).endswith('epoch_2.pth'):
        os.truncate(source, os.path.getsize(source) // 2)
        kill_at('writing')
    replace(source, target)

os.replace = replace_or_die

@HOOKS.register_module()
class KillHook(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        with open(os.environ['TRACE'], 'a') as trace:
            trace.write(f'{runner.cfg.work_dir} {runner.iter}' + chr(10))
        kill_at(f'epoch {runner.epoch}')

    def before_test_iter(self, runner, batch_idx, data_batch=None):
        kill_at('test')
"""
CONFIG = """
_base_ = 'mmpretrain::_base_/default_runtime.py'
custom_imports = dict(imports=['contnet_mm', 'helper_of_tests'], allow_failed_imports=False)
custom_hooks = [dict(type='mmengine.KillHook')]
arch = dict(base_channels=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1),
            feedforward_channels=(4, 4, 4, 4), window_sizes=((7, 7),) * 4,
            drop_rates=(0.0,) * 4, last_drop_rate=0.0)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='contnet_mm.ConTNet', arch=arch, out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=64, topk=(1,),
              loss=dict(type='CrossEntropyLoss')),
)
data_preprocessor = dict(num_classes=2, mean=[0] * 3, std=[255] * 3)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
dataset = dict(type='CustomDataset', data_root='data', data_prefix='', pipeline=pipeline)
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dataset,
                        sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dataset,
                      sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=3)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9))
auto_scale_lr = dict(base_batch_size=4)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
model_wrapper_cfg = dict(
    type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(type='contnet_mm.CheckpointHook'))
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with data and a checkout of nothing but a table of two rows."""
    folder = tmp_path_factory.mktemp('place')
    rng = np.random.RandomState(0)
    for name in ('0', '1'):
        (folder / 'data' / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.randint(0, 255, (32, 40, 3), dtype=np.uint8) // (1 + int(name))
            Image.fromarray(pixels).save(folder / 'data' / name / f'{i}.png')
    configs = folder / 'root' / 'configs' / TABLE
    configs.mkdir(parents=True)
    (folder / 'root' / 'tools').symlink_to(ROOT / 'tools')
    entries = []
    for name in ('one', 'two'):
        (configs / f'{name}.py').write_text(CONFIG)
        entries.append(
            f'- Name: {name}\n  Config: configs/{TABLE}/{name}.py\n  Results:\n'
            '  - Task: Image Classification\n    Dataset: data\n'
        )
    (configs / 'metafile.yml').write_text('Models:\n' + ''.join(entries))
    (folder / 'helper_of_tests.py').write_text(HELPER)
    return folder


def start(place, work_dir, *args, **environ):
    """Start the tool on the table, in a process group of its own."""
    code = (
        'import runpy, sys; from pathlib import Path; import contnet_mm.apis.config as config; '
        f'config.resources = lambda: Path({str(place / "root")!r}); '
        'import torch; torch.cuda.device_count = lambda: 4; '  # the processes use a CPU
        'import contnet_mm.reproduce.rows, contnet_mm.reproduce.run; '
        f'sys.argv = ["reproduce"] + sys.argv[1:]; '
        f'runpy.run_path({str(ROOT / "tools/reproduce.py")!r}, run_name="__main__")'
    )
    path = os.pathsep.join([str(ROOT), str(place)])
    bin_dir = os.path.dirname(sys.executable)
    environ = {
        **os.environ,
        'PYTHONPATH': path,
        'PATH': f'{bin_dir}{os.pathsep}{os.environ["PATH"]}',
        'TRACE': str(work_dir) + '.trace',
        'OMP_NUM_THREADS': '1',
        **environ,
    }
    command = [sys.executable, '-c', code, TABLE, '--run', '--work-dir', work_dir, *args]
    return subprocess.Popen(
        [*map(str, command)],
        cwd=place,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    output = process.communicate(timeout=600)[0]
    return process.returncode, output


def weights_of(work_dir, name):
    (path,) = work_dir.glob(f'{name}_seed0_*/train/epoch_3.pth')
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def iterations(work_dir):
    with open(f'{work_dir}.trace') as trace:
        return [int(line.split()[-1]) for line in trace]


def wait_for(pattern, work_dir, process):
    """Kill the tool and all that it has started once a file is there."""
    for _ in range(6000):
        if [*work_dir.glob(pattern)]:
            os.killpg(process.pid, signal.SIGKILL)
            return
        assert process.poll() is None, finish(process)
        time.sleep(0.05)
    raise AssertionError(f'{pattern} never came')


def test_killed_in_every_stage_it_gives_the_numbers_of_one_go(place, tmp_path):
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    row = ('--models', 'one', '--gpus', '0', '--skip', 'baseline')
    status, output = finish(start(place, whole, *row))
    assert status == 0, output

    process = start(place, cut, *row)
    wait_for('check/doctor_*.log', cut, process)
    finish(process)
    assert not [*cut.glob('one_*')]
    for point, last in [('epoch 0', 0), ('writing', 5), ('epoch 1', 3), ('test', 8)]:
        status, output = finish(start(place, cut, *row, KILL_AT=point))
        assert status == -signal.SIGKILL, output
        assert iterations(cut)[-1] == last
    process = start(place, cut, *row)
    wait_for('report.json', cut, process)
    finish(process)
    status, output = finish(start(place, cut, *row))
    assert status == 0, output

    # Only what no whole checkpoint held was done again.
    counts = [iterations(cut).count(i) for i in range(9)]
    assert counts == [2, 1, 1, 3, 2, 2, 1, 1, 1]
    expected, found = weights_of(whole, 'one'), weights_of(cut, 'one')
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    reports = [json.loads((folder / 'report.json').read_text()) for folder in (whole, cut)]
    got = [report['rows'][0]['got'] for report in reports]
    assert got[0] == got[1] and got[0]['Top 1 Accuracy']['values']


def test_two_rows_side_by_side_have_two_processes_each(place, tmp_path):
    work_dir = tmp_path / 'both'
    arguments = ('--gpus', '4', '--gpus-per-row', '2', '--stage', 'train', 'test', 'summary')
    status, output = finish(start(place, work_dir, *arguments))
    assert status == 0, output
    for name in ('one', 'two'):
        (folder,) = work_dir.glob(f'{name}_seed0_*')
        log = (folder / 'train.log').read_text()
        assert 'Distributed training: True' in log and 'GPU number: 2' in log
    first, second = (weights_of(work_dir, name) for name in ('one', 'two'))
    assert all(torch.equal(first[key], second[key]) for key in first)
