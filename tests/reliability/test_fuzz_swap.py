"""Wrong configs through the swap: each gives a config or a stated refusal, and no file else."""

import os
from contextlib import nullcontext
from unittest.mock import patch

import pytest

from contnet_mm.swap.trial.verify import verify
from tests.helpers import quick_weights, run_tool
from tests.reliability.config_mutants import Mutants
from tests.reliability.forks import assert_all_pass

TOTAL, VERIFIED = 2000, 300
PLANNED = patch('contnet_mm.swap.trial.verify.verify_swap', lambda original, config: 'not run')


class Check:
    def __init__(self, folder, verified):
        self.folder, self.mutants, self.verified = folder, Mutants(), verified
        assert verify  # imported before processes are forked

    def __call__(self, number, watch):
        what, content = self.mutants.make(number)
        folder = self.folder / str(number)
        folder.mkdir()
        (folder / 'mutant.py').write_bytes(content)
        os.chdir(folder)
        verifies = number in self.verified
        try:
            with quick_weights(), nullcontext() if verifies else PLANNED:
                done = run_tool('swap_backbone', 'mutant.py', '--arch', 'Ti', '-o', 'out.py')
            left = {path.name for path in folder.rglob('*')} - {'mutant.py'}
            said = done.stderr.strip()
            assert done.returncode in (0, 2), f'exit status {done.returncode}: {said[-500:]}'
            assert 'Traceback' not in said, said[-1500:]
            if done.returncode:
                assert 'error: ' in said and len(said) < 9000, f'says {len(said)}: {said[-500:]!r}'
                assert not left, f'leaves {left}'
                return 'refused, with a trial' if verifies else 'refused'
            assert left == {'out.py'}, f'leaves {left}'
            return 'gives a config, with a trial' if verifies else 'gives a config'
        except BaseException as error:
            error.args = (f'{what}: {error}',)
            if isinstance(error, (Exception, SystemExit)):
                raise AssertionError(f'{type(error).__name__}: {error}') from error
            raise


def run(folder, numbers, verified):
    # Of memory no limit is claimed: a config may ask for a model of any size.
    counts = assert_all_pass(Check(folder, verified), numbers, folder, seconds=300, gigabytes=99)
    tried = sum(count for verdict, count in counts.items() if 'trial' in verdict)
    assert tried == len(verified)


def test_some_wrong_configs_give_a_config_or_a_refusal(tmp_path):
    run(tmp_path, range(8), verified=())


@pytest.mark.slow
def test_wrong_configs_give_a_config_or_a_refusal(tmp_path):
    run(tmp_path, range(TOTAL), verified=range(VERIFIED))
