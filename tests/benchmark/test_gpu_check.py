"""The script that checks the network on a GPU, beside a Python that is made up."""

import os
import subprocess
import sys

import pytest
import torch

from tests.helpers import ROOT
from tools import benchmark


def check(python, out, *words):
    env = dict(os.environ, PYTHON=str(python), OUT=str(out))
    command = ['bash', str(ROOT / 'tools/gpu_check.sh'), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize(
    ('words', 'message'),
    [([], 'torch sees no CUDA device'), (['nowhere'], "there is no folder 'nowhere'")],
)
def test_without_a_gpu_or_wheels_the_check_says_so(words, message, tmp_path):
    result = check(sys.executable, tmp_path, *words)
    assert result.returncode == 2 and message in result.stderr


@pytest.mark.parametrize('failing', [None, 'test_gpu', 'training'])
def test_the_check_goes_through_all_steps_and_reports_failures(failing, tmp_path):
    fake, log = tmp_path / 'python', tmp_path / 'log'
    fake.write_text(f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *{failing}*) exit 3;; esac\n')
    fake.chmod(0o755)
    result = check(fake, tmp_path / 'out')
    assert result.returncode == bool(failing), result.stderr
    assert ('failed: exit status 3' in result.stdout) == bool(failing)
    _, tests, *timings = log.read_text().splitlines()
    assert 'pytest' in tests and '-m gpu' in tests
    options = [benchmark.make_parser().parse_args(line.split()[1:]) for line in timings]
    assert [args.passes for args in options] == [['inference'], ['training']]
