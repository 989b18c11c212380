"""A training of two processes under torch's launcher, one of which is killed."""

import re
import time

import pytest

from tests.helpers import ROOT, run_python

pytestmark = pytest.mark.slow


def test_the_launcher_ends_with_an_error_soon_after_one_process_is_killed(tmp_path):
    start = time.monotonic()
    result = run_python(
        *('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', 2),
        *('-m', 'tests.reliability.killed_process', tmp_path),
        cwd=ROOT,
    )
    seconds = time.monotonic() - start
    assert result.returncode
    assert 'killed now' in result.stdout
    # The other one is ended by the launcher, or had already lost its peer.
    assert re.search(r'exitcode +: -9', result.stderr)
    assert 'Signal 9 (SIGKILL)' in result.stderr
    assert seconds < 120  # a hang would last the half hour of a collective's timeout
