"""A table of two rows, and a program in place of ``mim`` that is as quick as its arithmetic."""

import os
import stat
import sys

import pytest

NUM_EPOCHS = 3
CONFIG = f"""
default_scope = 'mmpretrain'
model = dict(type='ImageClassifier', backbone=dict(type='contnet_mm.ConTNet', arch='tiny'))
dataset = dict(type='CustomDataset', data_root='data/tiny')
train_dataloader = dict(batch_size=4, dataset=dataset)
val_dataloader = dict(batch_size=2, dataset=dataset)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.5))
train_cfg = dict(by_epoch=True, max_epochs={NUM_EPOCHS})
auto_scale_lr = dict(base_batch_size=4)
"""
METAFILE = """\
Collections:
- Name: Tiny
Models:
- Name: first
  In Collection: Tiny
  Config: configs/tiny/first.py
  Results:
  - Task: Image Classification
    Dataset: tiny
- Name: second
  In Collection: Tiny
  Config: configs/tiny/second.py
  Results:
  - Task: Image Classification
    Dataset: tiny
  Published:
    Table: Tiny
    Row: second
    Parameters (M): 1.0
    Top 1 Accuracy: 60.0
"""
PAGE = """\
# Tiny

| backbone | config | published top-1 | measured here |
| --- | --- | --- | --- |
| A | [first](./first.py) |  |  |
| B | [second](./second.py) | 60.0 |  |

End.
"""
# Trains epochs of nothing, and keeps count; files are written as our CheckpointHook does.
MIM = """\
#!{python}
import json, os, shutil, signal, sys, time
from pathlib import Path

def fill(path):
    with open(path, 'wb', buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return

def passes(point):
    with open(os.environ['TRACE'], 'a') as trace:
        trace.write(point + chr(10))
    if os.environ.get('KILL_AT') == point:
        os.killpg(0, signal.SIGKILL)
    if os.environ.get('KILL_PARENT_AT') == point:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1)
    if os.environ.get('FILL_AT') == point:
        fill(os.environ['FILLER'])
    if os.environ.get('FAIL_AT') == point:
        sys.exit('a failure of its own')

def write(path, text, point=None):
    part = path.with_name('part')
    part.write_text(text)
    if point:
        passes(point)
    part.replace(path)

verb, words = sys.argv[1], sys.argv[4:]
name = Path(sys.argv[3]).stem
work_dir = Path(words[words.index('--work-dir') + 1])
seed = int(work_dir.parent.name.split('_seed')[1].split('_')[0])
run = work_dir / str(time.time_ns())
passes(f'{{verb}} {{name}} starts')
if verb == 'test':
    epochs = int(Path(words[words.index('--checkpoint') + 1]).stem.split('_')[1])
    passes(f'test {{name}} ends')
    run.mkdir(parents=True)
    top1 = 50.0 + 3 * epochs + seed
    (run / f'{{run.name}}.json').write_text(json.dumps({{'accuracy/top1': top1, 'time': 0.5}}))
    sys.exit()
(run / 'vis_data').mkdir(parents=True)
last, first = work_dir / 'last_checkpoint', 1
if '--resume' in words:
    first = int(Path(last.read_text()).stem.split('_')[1]) + 1
for epoch in range(first, {num_epochs} + 1):
    passes(f'{{name}} epoch {{epoch}} starts')
    with (run / 'vis_data/scalars.json').open('a') as file:
        file.write(json.dumps(dict(loss=1.0, epoch=epoch, iter=epoch, step=epoch)) + chr(10))
    path = work_dir / f'epoch_{{epoch}}.pth'
    write(path, 'weights', f'{{name}} writes epoch {{epoch}}')
    write(last, str(path))
    passes(f'{{name}} epoch {{epoch}} ends')
"""


@pytest.fixture
def root(tmp_path):
    """A folder with the configs of a table."""
    folder = tmp_path / 'root' / 'configs' / 'tiny'
    folder.mkdir(parents=True)
    for name in ('first', 'second'):
        (folder / f'{name}.py').write_text(CONFIG)
    (folder / 'metafile.yml').write_text(METAFILE)
    (folder / 'README.md').write_text(PAGE)
    return tmp_path / 'root'


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """Put the program in place of ``mim``; return the file in which it writes what it does."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    mim = folder / 'mim'
    mim.write_text(MIM.format(python=sys.executable, num_epochs=NUM_EPOCHS))
    mim.chmod(mim.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('TRACE', str(folder / 'trace'))
    return folder / 'trace'
