"""Disks that are full or read-only, files that are gone, clocks that go back."""

import errno
import functools
import os
import subprocess
import time

import pytest
from mmengine.hooks import Hook

from contnet_mm.checkpoint.read import read_checkpoint
from tests.noisy_training import (
    EPOCHS,
    assert_equal,
    interrupt,
    names_in,
    read_last,
    train,
)

# For the Regressor of a few weights half a megabyte is enough.
SECOND = 'epoch_2.pth'


def fill(folder):
    """Leave no byte on the disk of a folder."""
    with open(folder / 'filler', 'wb', buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC


class DoAtTheEndOf(Hook):
    """Does something when an epoch is trained, before its checkpoint is written."""

    priority = 'LOW'

    def __init__(self, epoch, action):
        self.epoch, self.action = epoch, action

    def after_train_epoch(self, runner):
        if runner.epoch == self.epoch - 1:
            self.action()


def is_in_epoch(epoch, runner):
    return runner.epoch == epoch


def remount(folder, how):
    subprocess.run(['mount', '-o', f'remount,{how}', str(folder)], check=True)


@pytest.fixture
def in_one_go(tmp_path):
    train(tmp_path / 'whole', seed=0)
    return tmp_path / 'whole'


def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_the_last(small_disk, in_one_go):
    work_dir = small_disk / 'work'
    options = dict(seed=0, max_keep_ckpts=1)
    full = DoAtTheEndOf(2, lambda: fill(small_disk))
    with pytest.raises(OSError, match=f'No space left on device.*{SECOND}'):
        train(work_dir, stop=full, **options)
    assert read_last(work_dir)['meta']['epoch'] == 1
    assert names_in(work_dir) == {'epoch_1.pth', 'last_checkpoint'}
    (small_disk / 'filler').unlink()
    train(work_dir, resume=True, **options)
    assert_equal(work_dir, in_one_go)


def test_with_the_hook_of_mmengine_a_full_disk_leaves_a_torn_file(small_disk):
    work_dir, full = small_disk / 'work', DoAtTheEndOf(2, lambda: fill(small_disk))
    with pytest.raises(OSError, match='No space left'):
        train(work_dir, stop=full, type='CheckpointHook')
    with pytest.raises(ValueError, match='damaged'):
        read_checkpoint(work_dir / SECOND)


def test_a_disk_that_turns_read_only_is_an_error_that_names_the_file(
    small_disk, tmp_path, in_one_go
):
    # Logs lie elsewhere: a disk with open files cannot be made read-only by hand.
    work_dir, options = tmp_path / 'work', dict(seed=0, out_dir=str(small_disk))
    read_only = DoAtTheEndOf(2, lambda: remount(small_disk, 'ro'))
    try:
        with pytest.raises(OSError, match=f'Read-only file system.*{SECOND}'):
            train(work_dir, stop=read_only, **options)
        assert read_last(work_dir)['meta']['epoch'] == 1
        assert names_in(small_disk / 'work') == {'epoch_1.pth'}
        with pytest.raises(OSError, match='Read-only file system.*new'):
            train(small_disk / 'new', seed=0)
    finally:
        remount(small_disk, 'rw')
    train(work_dir, resume=True, **options)
    assert_equal(work_dir, in_one_go)


def test_a_checkpoint_that_was_removed_is_named(tmp_path):
    interrupt(tmp_path, 'before_train_iter', lambda r: r.epoch == 2)
    (tmp_path / SECOND).unlink()
    with pytest.raises(FileNotFoundError, match=SECOND):
        train(tmp_path, resume=True)
    assert names_in(tmp_path) == {'epoch_1.pth', 'last_checkpoint'}


def test_a_removed_folder_comes_back_with_the_next_checkpoint(tmp_path):
    def remove():
        for name in names_in(tmp_path / 'work'):
            (tmp_path / 'work' / name).unlink()

    train(tmp_path / 'work', stop=DoAtTheEndOf(2, remove))
    assert read_last(tmp_path / 'work')['meta']['epoch'] == EPOCHS


def test_a_clock_that_was_set_back_changes_nothing(tmp_path, in_one_go, monkeypatch):
    work_dir = tmp_path / 'work'
    clock = time.time
    for epoch in range(EPOCHS):  # each start trains one, and lives a day before the one before it
        now = clock() - epoch * 24 * 3600
        with monkeypatch.context() as patch:
            patch.setattr(time, 'time', lambda now=now: now)
            rest = dict(seed=0, resume=epoch > 0)
            if epoch < EPOCHS - 1:
                stop = functools.partial(is_in_epoch, epoch + 1)
                interrupt(work_dir, 'before_train_iter', stop, **rest)
            else:
                train(work_dir, **rest)
        os.utime(work_dir / f'epoch_{epoch + 1}.pth', (now, now))
    assert_equal(work_dir, in_one_go)
    assert len([*work_dir.glob('*/vis_data')]) == EPOCHS
