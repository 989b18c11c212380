"""Commands run with their output in a file; progress is told, and failures say why."""

import sys

import pytest

from contnet_mm.reproduce import process
from contnet_mm.reproduce.process import CommandError, read_progress, run_command

EPOCH = (
    '11/25 00:38:10 - mmengine - INFO - Epoch(train) [{epoch}][{step:>3}/188]  lr: 1.0e-03  '
    'eta: 0:03:02  time: 0.31  loss: 1.2\n'
)
ITER = (
    '11/25 00:38:10 - mmengine - INFO - Iter(train) [ 150/40000]  lr: 1.0e-02  '
    'eta: 1 day, 2:03:04  time: 1\n'
)


def test_output_is_kept_and_a_failure_shows_its_end(tmp_path):
    log = tmp_path / 'deep' / 'log'
    run_command([sys.executable, '-c', 'print("first")'], log)
    code = 'import sys; print("the reason"); sys.exit(3)'
    with pytest.raises(CommandError, match=r'^the reason \(status 3 of .*; see .*log\)'):
        run_command([sys.executable, '-c', code], log)
    assert log.read_text() == 'first\nthe reason\n'


def test_the_reason_is_the_error_of_the_library_and_not_that_of_mim(tmp_path):
    code = (
        'import subprocess, sys; '
        'subprocess.run([sys.executable, "-c", "raise ValueError(3)"], check=True)'
    )
    with pytest.raises(CommandError, match=r'^ValueError: 3 \(status 1 of '):
        run_command([sys.executable, '-c', code], tmp_path / 'log')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('', None),
        (EPOCH.format(epoch=1, step=50), None),  # too early for an estimate
        (EPOCH.format(epoch=1, step=100), 'epoch 1, iteration 100 of 188, 0:03:02 left'),
        (EPOCH.format(epoch=2, step=10), 'epoch 2, iteration 10 of 188, 0:03:02 left'),
        (EPOCH.format(epoch=1, step=50) + ITER, 'iteration 150 of 40000, 1 day, 2:03:04 left'),
    ],
)
def test_progress_is_that_of_the_last_line(tmp_path, text, expected):
    log = tmp_path / 'log'
    log.write_text(text)
    assert read_progress(log) == expected


def test_progress_is_told_while_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(process, 'REPORT_EVERY', 0.0)
    monkeypatch.setattr(process, 'POLL', 0.05)
    said = []
    code = f'import time; print({EPOCH.format(epoch=2, step=10)!r}, flush=True); time.sleep(0.6)'
    run_command([sys.executable, '-c', code], tmp_path / 'log', report=said.append)
    assert said and set(said) == {'epoch 2, iteration 10 of 188, 0:03:02 left'}
