"""torchvision's operations are installed where mmcv has none, and only there."""

import subprocess
import sys
import venv

import pytest

from contnet_mm.apis import mmcv_ops
from tests.helpers import ROOT, run_tool


def site_packages(environment):
    """Return the folder of packages of a virtual environment."""
    return next(environment.glob('lib/python3*/site-packages'))


@pytest.fixture
def bare(tmp_path):
    """Return an environment whose mmcv has no operations, beside our torchvision and pip."""
    venv.create(tmp_path / 'env', symlinks=True, system_site_packages=False)
    site = site_packages(tmp_path / 'env')
    (site / 'ours.pth').write_text(
        '\n'.join(path for path in sys.path if path.endswith('-packages'))
    )
    (site / 'mmcv').mkdir()
    (site / 'mmcv' / '__init__.py').touch()
    return tmp_path / 'env'


def run(environment, code):
    return subprocess.run(
        [environment / 'bin' / 'python', '-c', code], cwd=ROOT, capture_output=True, text=True
    )


def test_operations_are_installed_once_and_can_be_removed(bare, monkeypatch):
    monkeypatch.setenv('PIP_NO_BUILD_ISOLATION', '0')
    code = 'from contnet_mm.apis.mmcv_ops import *; print(find_ops()); print(install_ops())'
    first, second = run(bare, code), run(bare, code)
    assert first.stdout.splitlines()[0] == 'None', first.stderr
    assert first.stdout.endswith("mmcv has torchvision's operations now\n"), first.stdout
    assert second.stdout == "torchvision\nmmcv has torchvision's operations already\n"
    loads = run(bare, 'import mmcv._ext as e; print(e.get_compiler_version())')
    assert loads.stdout == "none (torchvision's operations)\n", loads.stderr
    words = ('-m', 'pip', 'uninstall', '-y', 'torchvision-ops-for-mmcv')
    subprocess.run([bare / 'bin' / 'python', *words], check=True, capture_output=True)
    assert not (site_packages(bare) / 'mmcv' / '_ext.py').exists()


@pytest.mark.mmcv_ops
def test_compiled_operations_are_left_alone():
    result = run_tool('install_ops')
    assert result.returncode == 2 and 'mmcv has compiled operations' in result.stderr


def test_without_mmcv_there_is_nothing_to_install_into(monkeypatch):
    monkeypatch.setattr(mmcv_ops, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='mmcv is not installed'):
        mmcv_ops.install_ops()
