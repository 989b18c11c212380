"""Commands run with their output in a file, and failures say why."""

import sys

import pytest

from contnet_mm.reproduce.process import CommandError, run_command


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
