"""Killed at any moment, a training goes on from a whole checkpoint, to the same bits."""

import json

import pytest

from tests.helpers import ROOT, run_python

pytestmark = pytest.mark.slow


def kill(kills, *args):
    """Run the script in a process of its own, which has no threads that a copy would miss."""
    words = ['-m', 'tests.reliability.kills', '--kills', kills, *args]
    result = run_python(*words, cwd=ROOT, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    assert result.stdout, result.stderr
    counts = json.loads(result.stdout)
    assert result.returncode == bool(counts['failures'])
    return counts


def test_a_hundred_kills_lose_nothing():
    counts = kill(100)
    assert not counts['failures']
    assert counts['kills'] == 100 and counts['in_writing'] >= 20


def test_the_hook_of_mmengine_leaves_torn_files_under_their_names():
    counts = kill(8, '--hook', 'CheckpointHook')
    assert any('torn: ' in line for line in counts['failures'])
