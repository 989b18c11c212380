"""tools/doctor.py, in a bare environment, from a wheel and in this one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from contnet_mm.doctor import facts
from contnet_mm.doctor.commands import OPENMMLAB
from contnet_mm.doctor.facts import LIBRARIES
from tests.helpers import ROOT, run_python

TOOL = ROOT / 'tools' / 'doctor.py'


@pytest.mark.parametrize('tool', [[TOOL], ['-m', 'contnet_mm', 'doctor']], ids=['file', 'module'])
def test_tool_runs_in_a_bare_environment_and_says_what_is_missing(tmp_path, tool):
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path], check=True)
    # Not ROOT itself: what a build left there would count as an installed contnet_mm.
    path = tmp_path / 'path'
    path.mkdir()
    (path / 'contnet_mm').symlink_to(ROOT / 'contnet_mm')
    command = [tmp_path / 'bin' / 'python', *tool]
    environ = {'PYTHONPATH': str(path), 'PATH': '/usr/bin:/bin'}
    result = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert result.returncode == 1 and not result.stderr
    # Where the text wraps depends on the length of the paths in it.
    pattern = r'^(?:problem|warning) +(\w+) (?:.*\n +)+?\$ (.+)'
    problems = re.findall(pattern, result.stdout, re.M)
    names = [name for name, _ in problems]
    assert names == ['pip', 'torch', 'numpy', 'mmengine', 'contnet_mm', 'mim']
    assert all(str(tmp_path / 'bin' / 'python') in command for _, command in problems)
    assert '2 warnings and 4 problems to fix' in result.stdout
    assert re.search(r'^note +mmdet +is missing', result.stdout, re.M)
    assert re.search(r'^note +environment +a bare Python', result.stdout, re.M)


def test_tool_refuses_unknown_libraries():
    result = run_python(TOOL, '--need', 'mmcls')
    assert result.returncode == 2 and "'mmcls'" in result.stderr


@pytest.mark.parametrize('package', ['contnet_mm', 'contnet_mim'])
def test_tool_runs_from_where_a_wheel_puts_it(tmp_path, package):
    shutil.copytree(ROOT / 'contnet_mm' / 'doctor', tmp_path / 'contnet_mm' / 'doctor')
    (tmp_path / package / '.mim' / 'tools').mkdir(parents=True)
    tool = shutil.copy(TOOL, tmp_path / package / '.mim' / 'tools')
    result = run_python(tool, '--help')
    assert result.returncode == 0 and '--need' in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    not all(facts.origin(module) for module in OPENMMLAB), reason='not all libraries are here'
)
def test_nothing_is_found_in_this_environment():
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    result = run_python(TOOL, '--need', *LIBRARIES, PATH=path, CUDA_VISIBLE_DEVICES='')
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'All is well.' in result.stdout
    for library in LIBRARIES:
        assert re.search(rf'^ok +mim train {library} ', result.stdout, re.M)
