"""Environments that the set-up would build, in place of real ones."""

import pytest

from tests.tools.environment import make_command
from tools.setup_env.environment import STACKS, Env


@pytest.fixture
def env(tmp_path):
    """Return an environment that does not exist yet, below an empty root."""
    return Env(STACKS['onedl'], root=tmp_path)


@pytest.fixture
def made(env):
    """Return an environment that counts as made, with a command in place of its Python."""
    make_command(env.python, 'echo "[3, 11]"')
    make_command(env.path / 'bin' / 'pip').write_text(f'#!{env.path}/bin/python\n')
    env.state.mkdir()
    return env
