"""What the tests of the set-up share: which environment runs them, and fake commands."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tools.setup_env.environment import STACKS

# The stack in whose environment these tests run, None in an environment of somebody else's making.
MADE_BY_SETUP = next((s.name for s in STACKS.values() if Path(sys.prefix) == ROOT / s.venv), None)
only_made = pytest.mark.skipif(MADE_BY_SETUP is None, reason='only in what make setup built')
only_onedl = pytest.mark.skipif(MADE_BY_SETUP != 'onedl', reason='only the fork needs the names')
only_make = pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')


def make_command(path, script='exit 0'):
    """Write a shell script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)
    return path
