"""What the set-up refuses before it downloads anything."""

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.tools.environment import make_command
from tools.setup_env import __main__ as setup
from tools.setup_env import preflight
from tools.setup_env.environment import STACKS, SetupError
from tools.setup_env.preflight import Python


def make_python(path, version, missing='[]'):
    """Make a command that answers the inspection like a Python of this version."""
    return make_command(path, f"echo '[{version}, {missing}]'")


def test_a_missing_or_broken_compiler_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', f'{tmp_path}')
    monkeypatch.delenv('CXX', raising=False)
    (problem,) = preflight.compiler_problems()
    assert "no C++ compiler: 'c++'" in problem
    assert 'apt install g++' in problem
    make_command(tmp_path / 'clang++', 'echo "vector: no such file" >&2; exit 1')
    monkeypatch.setenv('CXX', 'clang++ -O1')
    (problem,) = preflight.compiler_problems()
    assert "'clang++' does not compile C++17: vector: no such file" in problem
    make_command(tmp_path / 'clang++')
    assert not preflight.compiler_problems()


def test_an_unsupported_python_is_named_with_the_supported_ones(tmp_path):
    odd = make_python(tmp_path / 'python', '[3, 7]')
    with pytest.raises(SetupError, match=r'is python3\.7; STACK=openmmlab needs 3\.10'):
        preflight.find_python(STACKS['openmmlab'], str(odd))
    with pytest.raises(SetupError, match=r'does not run; STACK=onedl needs 3\.11 or 3\.10 or 3'):
        preflight.find_python(STACKS['onedl'], str(tmp_path / 'absent'))


def test_an_absent_python_is_answered_with_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('PYENV_ROOT', str(tmp_path))
    make_python(tmp_path / 'python3', '[3, 8]')
    advice = 'no Python 3.11 or 3.10 or 3.12 found.*apt install python3.11 python3.11-venv'
    with pytest.raises(SetupError, match=f'(?s){advice}'):
        preflight.find_python(STACKS['onedl'])


def test_a_complete_python_is_preferred_and_found_in_pyenv(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', f'{tmp_path}/a')
    monkeypatch.setenv('PYENV_ROOT', str(tmp_path))
    bare = make_python(tmp_path / 'a' / 'python3.11', '[3, 11]', missing='["dev"]')
    assert preflight.find_python(STACKS['onedl']).path == str(bare)
    good = make_python(tmp_path / 'versions/3.10.1/bin/python3.10', '[3, 10]')
    assert preflight.find_python(STACKS['onedl']).path == str(good)


def test_this_python_is_inspected_rightly():
    python = preflight.inspect_python(sys.executable)
    assert python.version == sys.version_info[:2]
    has_headers = Path(sysconfig.get_path('include'), 'Python.h').is_file()
    assert ('dev' in python.missing) == (not has_headers)


def test_small_disks_are_named_and_needs_on_one_disk_added_up(tmp_path, monkeypatch):
    needs = {tmp_path: 6.0, tmp_path.parent: 2.0}
    seven = shutil.disk_usage(tmp_path)._replace(free=7 * preflight.GB)
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: seven)
    (problem,) = preflight.disk_problems(needs)
    assert '7.0 GB free, 8.0 GB needed' in problem
    assert not preflight.disk_problems({**needs, tmp_path: 4.0})


def test_everything_that_is_missing_is_named_at_once_and_nothing_is_made(env, monkeypatch):
    def load(name):
        raise OSError(name)

    bare = Python('/opt/python', (3, 11), missing=['venv', 'dev'])
    monkeypatch.setattr(preflight, 'find_python', lambda *_: bare)
    monkeypatch.setattr(preflight, 'compiler_problems', lambda: ['no compiler'])
    monkeypatch.setattr(preflight.ctypes, 'CDLL', load)
    monkeypatch.setattr(preflight, 'disk_problems', lambda needs: [f'{needs[env.root]:.0f} GB'])
    with pytest.raises(SetupError) as caught:
        env.ops = 'mmcv'
        preflight.preflight(env, setup.steps_of(env), '')
    for text in (
        'no module venv or ensurepip.\n  Debian/Ubuntu: apt install python3.11-venv',
        'no Python.h, which mmcv needs.\n  Debian/Ubuntu: apt install python3.11-dev',
        'no compiler',
        'apt install libgl1 libglib2.0-0',
        '- 6 GB',
    ):
        assert text in str(caught.value)
    assert not env.path.exists()


@pytest.mark.parametrize('wheel', ['', '/somewhere/mmcv.whl'])
def test_only_what_compiles_needs_a_compiler(env, monkeypatch, wheel):
    complete = Python('/opt/python', (3, 11), missing=['dev'])
    monkeypatch.setattr(preflight, 'find_python', lambda *_: complete)
    monkeypatch.setattr(preflight, 'compiler_problems', lambda: ['no compiler'])
    monkeypatch.setattr(preflight, 'library_problems', list)
    monkeypatch.setattr(preflight, 'disk_problems', lambda needs: [])
    env.ops, env.mmcv_wheel = 'mmcv' if wheel else 'torchvision', wheel
    assert preflight.preflight(env, setup.steps_of(env), '') == complete


@pytest.mark.parametrize(
    ('torch_cuda', 'smi', 'nvcc', 'build', 'words'),
    [
        ('13.0', None, 'release 13.0', False, 'no working nvidia-smi'),
        (None, 'ok', 'release 13.0', False, 'built without CUDA'),
        ('13.0', 'ok', 'release 13.1', True, 'unproven'),
    ],
)
def test_ops_are_compiled_for_what_is_there(torch_cuda, smi, nvcc, build, words, monkeypatch):
    answers = {'nvidia-smi': smi, 'nvcc': nvcc}
    monkeypatch.setattr(preflight, 'output_of', lambda command: answers[Path(command[0]).name])
    plan = preflight.cuda_plan(torch_cuda)
    assert plan[0] == build
    assert words in plan[1]


@pytest.mark.parametrize(
    ('nvcc', 'words'), [(None, 'no nvcc was found'), ('release 12.4', 'nvcc 12 was found')]
)
def test_a_gpu_without_the_nvcc_of_torch_gets_no_ops_for_the_cpu(nvcc, words, monkeypatch):
    answers = {'nvidia-smi': 'ok', 'nvcc': nvcc}
    monkeypatch.setattr(preflight, 'output_of', lambda command: answers[Path(command[0]).name])
    compiler = r"'cuda-toolkit\[nvcc,nvvm,crt,cccl\]==13\.0\.\*'.*docs/install\.md"
    match = f'needs an nvcc of CUDA 13; {words}(.|\n)*{compiler}(.|\n)*MMCV_WHEEL=.*OPS=torchvision'
    with pytest.raises(SetupError, match=match):
        preflight.cuda_plan('13.0')
    if not nvcc:
        with pytest.raises(SetupError, match='CUDA toolkit 12 and set CUDA_HOME'):
            preflight.cuda_plan('12.1')
