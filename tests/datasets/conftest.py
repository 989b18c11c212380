"""The demo data that the checks of data sets are tried on."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def pristine(tmp_path_factory):
    from contnet_mm.datasets.demo import make_demo_data
    from tests.datasets.helpers import OPTIONS

    folder = tmp_path_factory.mktemp('pristine') / 'demo'
    make_demo_data(folder, OPTIONS)
    return folder


@pytest.fixture
def demo(pristine, tmp_path):
    """A copy of the demo data that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / 'data' / 'demo'))
