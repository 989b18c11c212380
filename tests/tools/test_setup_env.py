"""The set-up: what it refuses, what it remembers, and what it pins."""

import contextlib
import fcntl
import importlib.metadata
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT

sys.path.insert(0, str(ROOT / 'tools'))
from setup_env import __main__ as setup  # noqa: E402
from setup_env import environment, preflight  # noqa: E402
from setup_env.environment import STACKS, Env, SetupError  # noqa: E402
from setup_env.preflight import Python  # noqa: E402

# The versions that were tried together; nothing else may creep into the requirement files.
PINS = {
    'onedl': {
        'torch': '2.11.0',
        'torchvision': '0.26.0',
        'onedl-mmcv': '2.3.6',
        'onedl-mmengine': '0.10.12',
        'onedl-mmdetection': '3.5.1',
        'onedl-mmsegmentation': '1.4.2',
        'onedl-mmpretrain': '1.3.6',
        'onedl-mim': '0.5.1',
    },
    'openmmlab': {
        'torch': '2.1.2',
        'torchvision': '0.16.2',
        'mmcv': '2.1.0',
        'mmengine': '0.10.7',
        'mmdet': '3.3.0',
        'mmsegmentation': '1.2.2',
        'mmpretrain': '1.2.0',
        'openmim': '0.3.9',
    },
}
# For each stack (package, lowest version, first version that is too new).
BOUNDS = {
    'onedl': [('numpy', (2, 2), (2, 3)), ('setuptools', (80,), (82,))],
    'openmmlab': [
        ('numpy', (1,), (2,)),
        ('opencv-python', (4,), (4, 12)),
        ('setuptools', (64,), (70,)),
    ],
}


def read_pins(*names):
    """Return {normalised name: version} of requirement files; any line but a pin is an error."""
    pins = {}
    for name in names:
        for line in (ROOT / 'requirements' / name).read_text().splitlines():
            line = line.partition('#')[0].strip()
            if line:
                match = re.fullmatch(r'([\w.-]+)==([\w.]+)(?: ; python_version < "3.11")?', line)
                assert match, f'{name}: {line!r} is no exact pin'
                key = re.sub(r'[._]', '-', match[1].lower())
                assert pins.get(key, match[2]) == match[2], f'{key} is pinned twice, differently'
                pins[key] = match[2]
    return pins


def stack_pins(stack):
    return read_pins(f'{stack}.txt', f'{stack}-torch.txt', f'{stack}-mmcv.txt', 'dev.txt')


# The stack in whose environment these tests run, None in an environment of somebody else's making.
MADE_BY_SETUP = next((s.name for s in STACKS.values() if Path(sys.prefix) == ROOT / s.venv), None)
only_made = pytest.mark.skipif(MADE_BY_SETUP is None, reason='only in what make setup built')
only_onedl = pytest.mark.skipif(MADE_BY_SETUP != 'onedl', reason='only the fork needs the names')
only_make = pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')


@pytest.fixture
def env(tmp_path):
    """Return an environment that does not exist yet, below an empty root."""
    return Env(STACKS['onedl'], root=tmp_path)


def make_command(path, script='exit 0'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def make_python(path, version, headers='true'):
    """Make a command that answers the inspection like a Python of this version."""
    return make_command(path, f'echo "[{version}, true, {headers}]"')


@pytest.fixture
def made(env):
    """Return an environment that counts as made, with a command in place of its Python."""
    make_command(env.python, 'echo "[3, 11]"')
    make_command(env.path / 'bin' / 'pip').write_text(f'#!{env.path}/bin/python\n')
    env.state.mkdir()
    return env


# Pins -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('stack', PINS)
def test_requirement_files_pin_the_versions_that_were_tried_together(stack):
    pins = stack_pins(stack)
    assert {name: pins.get(name) for name in PINS[stack]} == PINS[stack]
    for name, low, high in BOUNDS[stack]:
        version = tuple(map(int, pins[name].split('.')))
        assert low <= version < high, f'{name}=={pins[name]}'


def test_no_lock_holds_libraries_of_the_other_stack():
    onedl, openmmlab = (read_pins(f'{name}.txt', f'{name}-mmcv.txt') for name in PINS)
    assert not {'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmpretrain'} & set(onedl)
    assert not [name for name in openmmlab if name.startswith('onedl')]


@only_made
def test_the_environment_is_what_its_lock_says():
    pins = stack_pins(MADE_BY_SETUP)
    del pins['pip']  # upgrading it harms nothing
    if sys.version_info >= (3, 11):
        del pins['exceptiongroup']
        pins.pop('tomli', None)
    found = {name: importlib.metadata.version(name).partition('+')[0] for name in pins}
    assert found == pins


def test_hooks_have_the_revisions_of_the_pins():
    text = (ROOT / '.pre-commit-config.yaml').read_text()
    pins = read_pins('dev.txt')
    for name, repo in (('ruff', 'ruff-pre-commit'), ('codespell', 'codespell')):
        assert re.search(rf'/{repo}\n\s+rev: v(\S+)', text)[1] == pins[name]


@pytest.mark.parametrize(
    ('name', 'fork'), [('mmdet', 'onedl-mmdetection'), ('mmsegmentation', 'onedl-mmsegmentation')]
)
def test_transitional_versions_equal_those_of_the_fork(name, fork):
    text = (ROOT / 'tools/transitional' / name / 'pyproject.toml').read_text()
    assert re.search(r"^version = '(.*)'", text, re.MULTILINE)[1] == PINS['onedl'][fork]


# Transitional distributions ---------------------------------------------------------------------


@only_onedl
def test_mim_finds_the_scripts_of_mmdet_under_its_short_name():
    from mim.utils import get_installed_path, module_full_name

    assert module_full_name('mmdet') == 'mmdet'
    tools = Path(get_installed_path('mmdet'), 'tools')
    assert (tools / 'test.py').is_file()
    text = subprocess.check_output([sys.executable, tools / 'train.py', '--help'], text=True)
    assert 'usage: train.py' in text
    assert '--auto-scale-lr' in text  # an option of MMDetection's own script


@only_made
@pytest.mark.parametrize(
    'base',
    [
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmseg::pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py',
        'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    ],
)
def test_bases_of_all_three_libraries_resolve(base, tmp_path):
    from mmengine.config import Config

    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {base!r}\n')
    assert Config.fromfile(config).model.backbone.type.startswith('ResNet')


# Preflight --------------------------------------------------------------------------------------


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
    bare = make_python(tmp_path / 'a' / 'python3.11', '[3, 11]', headers='false')
    assert preflight.find_python(STACKS['onedl']).path == str(bare)
    good = make_python(tmp_path / 'versions/3.10.1/bin/python3.10', '[3, 10]')
    assert preflight.find_python(STACKS['onedl']).path == str(good)


def test_this_python_is_inspected_rightly():
    python = preflight.inspect_python(sys.executable)
    assert python.version == sys.version_info[:2]
    assert python.has_headers == Path(sysconfig.get_path('include'), 'Python.h').is_file()


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

    bare = Python('/opt/python', (3, 11), has_venv=False, has_headers=False)
    monkeypatch.setattr(preflight, 'find_python', lambda *_: bare)
    monkeypatch.setattr(preflight, 'compiler_problems', lambda: ['no compiler'])
    monkeypatch.setattr(preflight.ctypes, 'CDLL', load)
    monkeypatch.setattr(preflight, 'disk_problems', lambda needs: [f'{needs[env.root]:.0f} GB'])
    with pytest.raises(SetupError) as caught:
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


@only_make
def test_make_setup_says_what_is_wrong_and_fails(tmp_path):
    for name in ('requirements', 'tools', 'contnet_mm'):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ('setup.py', 'pyproject.toml', 'Makefile'):
        shutil.copy(ROOT / name, tmp_path)
    command = ['make', '-C', str(tmp_path), 'setup', 'PYTHON=/absent/python3.11', 'STACK=openmmlab']
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode
    assert 'PYTHON=/absent/python3.11 does not run; STACK=openmmlab needs 3.10' in found.stderr
    assert not (tmp_path / '.venv-openmmlab').exists()


@only_make
def test_make_help_lists_the_targets_from_anywhere(tmp_path):
    text = subprocess.check_output(['make', '-C', str(ROOT)], text=True, cwd=tmp_path)
    for target in ('setup', 'lint', 'test', 'test-all', 'demo', 'clean'):
        assert re.search(rf'^  {target} ', text, re.MULTILINE)


# Stamps and resuming ----------------------------------------------------------------------------


@pytest.fixture
def step(made):
    (made.root / 'lock.txt').write_text('a==1\n')
    return setup.Step('one', 'first', lambda env: None, ('lock.txt',))


def test_a_step_is_done_until_a_file_of_it_changes_or_its_stamp_is_cut_off(made, step):
    assert not environment.is_done(made, step)
    environment.write_stamp(made, step)
    assert environment.is_done(made, step)
    stamp = made.state / 'one.stamp'
    stamp.write_text(stamp.read_text()[:10])
    assert not environment.is_done(made, step)
    environment.write_stamp(made, step)
    (made.root / 'lock.txt').write_text('a==2\n')
    assert not environment.is_done(made, step)


@pytest.mark.parametrize('stack', STACKS)
def test_a_change_of_the_setup_itself_or_the_library_rebuilds_nothing(stack):
    for step in setup.steps_of(Env(STACKS[stack])):
        for name in step.files:
            assert (ROOT / name).is_file()
            assert not name.startswith('tools/setup_env')
            if step.name in ('packages', 'torch', 'mmcv', 'dev'):
                assert name.startswith('requirements/')


def test_a_failed_step_is_tried_again_and_finished_ones_are_not(made, step, monkeypatch, capsys):
    calls = []

    def fail_once(env):
        calls.append('two')
        if len(calls) == 2:
            raise SetupError('broken')

    first = step._replace(run=lambda env: calls.append('one'))
    steps = [first, step._replace(name='two', title='second: 3 minutes', run=fail_once)]
    monkeypatch.setattr(setup, 'steps_of', lambda env: steps)
    monkeypatch.setattr(setup, 'preflight', lambda *_: None)
    with pytest.raises(SetupError, match='broken'):
        setup.build(made)
    setup.build(made)
    assert calls == ['one', 'two', 'two']
    assert '[3/3] second: 3 minutes' in capsys.readouterr().out
    setup.build(made)
    assert calls == ['one', 'two', 'two']
    assert 'is complete' in capsys.readouterr().out


def test_an_option_that_comes_too_late_is_said_to_change_nothing(made, step, monkeypatch, capsys):
    made.torch_index = 'https://wheels.example/cpu'
    torch = step._replace(name='torch')
    environment.write_stamp(made, torch)
    monkeypatch.setattr(setup, 'steps_of', lambda env: [torch])
    setup.build(made, 'python3.10')
    late = 'PYTHON=python3.10 and TORCH_INDEX=https://wheels.example/cpu changes nothing'
    assert late in capsys.readouterr().out


def test_two_setups_of_one_environment_exclude_each_other(env):
    with environment.locked(env), pytest.raises(SetupError, match='another make setup'):
        environment.locked(env).__enter__()
    with environment.locked(env):
        pass  # free again


def test_the_lock_holds_until_the_last_command_of_a_killed_setup_ends(made):
    with environment.locked(made):
        environment.run_logged(made, ['ls', '-l', '/proc/self/fd'])
    assert '.venv.lock' in made.log.read_text()  # the kernel keeps it as long as that is open


def test_what_an_interrupted_pip_left_is_removed(env):
    site = env.path / 'lib/python3.11/site-packages'
    for folder in ('whole-1.dist-info', 'half-1.dist-info', '~umpy', 'numpy'):
        (site / folder).mkdir(parents=True)
    (site / 'whole-1.dist-info' / 'INSTALLER').write_text('pip\n')
    environment.mend_site_packages(env)
    assert sorted(path.name for path in site.iterdir()) == ['numpy', 'whole-1.dist-info']


def test_a_half_made_or_moved_environment_counts_as_absent(made, tmp_path):
    pip = made.path / 'bin' / 'pip'
    assert environment.is_usable(made)
    pip.write_text(f'#!{tmp_path}/elsewhere/bin/python\n')
    assert not environment.is_usable(made)
    pip.unlink()
    assert not environment.is_usable(made)


def test_a_half_made_environment_is_made_anew(made):
    environment.write_stamp(made, setup.Step('old', '', None, ()))
    python = make_command(made.root / 'python', 'echo "made with $*"')
    environment.make_venv(made, python)
    assert [path.name for path in made.path.iterdir()] == [made.state.name]
    assert [path.name for path in made.state.iterdir()] == ['venv.log']
    assert f'made with -m venv {made.path}' in made.log.read_text()
    assert not environment.is_usable(made)


def test_a_folder_that_is_no_environment_is_left_alone(env):
    env.path.mkdir()
    (env.path / 'precious').touch()
    with pytest.raises(SetupError, match='is no virtual environment'):
        environment.is_usable(env)


def test_an_environment_of_another_python_is_not_removed_silently(made):
    make_command(made.python, 'echo "[3, 8]"')
    with pytest.raises(SetupError, match=r'has Python 3\.8; STACK=onedl needs .*\n.*rm -r'):
        environment.is_usable(made)


# Steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('index', ['', 'https://wheels.example/cpu'])
def test_only_torch_and_torchvision_come_from_the_given_index(made, index, monkeypatch):
    made.torch_index = index
    calls = []
    (made.root / 'requirements').symlink_to(ROOT / 'requirements')
    monkeypatch.setattr(setup, 'run_logged', lambda env, command, **_: calls.append(command))
    monkeypatch.setattr(setup, 'ask', lambda *_: True)
    monkeypatch.setattr(setup, 'cuda_plan', lambda torch_cuda: (False, 'CPU ops'))
    for step in setup.steps_of(made):
        step.run(made)
    assert [made.python, '-m', 'pip', 'check'] in calls
    (torch,) = [words for words in calls if 'requirements/onedl-torch.txt' in words]
    option = ['--index-url', index] if index else []
    assert torch[4:] == [*option, '-r', 'requirements/onedl-torch.txt']
    assert not [words for words in calls if '--index-url' in words and words != torch]


def test_torch_and_torchvision_must_import_together(made):
    make_command(made.python, '[ "$1" = -m ]')  # pip works, imports do not
    with pytest.raises(SetupError, match='must come from the same index'):
        setup.install_torch(made)


def test_mmcv_without_ops_is_built_afresh_once_and_then_refused(env, monkeypatch):
    calls = []
    monkeypatch.setattr(setup, 'pip_install', lambda env, *words, **options: calls.append(words))
    monkeypatch.setattr(setup, 'cuda_plan', lambda torch_cuda: (False, 'CPU ops'))
    for works_after, refused in ((1, False), (2, False), (3, True)):
        calls.clear()
        monkeypatch.setattr(setup, 'ops_work', lambda *_, n=works_after: len(calls) == n)
        match = 'its ops were not built for cpu'
        with pytest.raises(SetupError, match=match) if refused else contextlib.nullcontext():
            setup.install_mmcv(env)
        assert ['--no-cache-dir' in words for words in calls] == [False, True][:works_after]


@pytest.mark.parametrize(
    ('torch_cuda', 'smi', 'nvcc', 'build', 'words'),
    [
        ('13.0', None, 'release 13.0', False, 'no working nvidia-smi'),
        (None, 'ok', 'release 13.0', False, 'built without CUDA'),
        ('13.0', 'ok', None, False, 'no nvcc found; CUDA ops need an nvcc of CUDA 13'),
        ('13.0', 'ok', 'release 12.4', False, 'nvcc 12 found; CUDA ops need an nvcc of CUDA 13'),
        ('13.0', 'ok', 'release 13.1', True, 'unproven'),
    ],
)
def test_cuda_ops_need_the_nvcc_of_torch(torch_cuda, smi, nvcc, build, words, monkeypatch):
    answers = {'nvidia-smi': smi, 'nvcc': nvcc}
    monkeypatch.setattr(preflight, 'output_of', lambda command: answers[Path(command[0]).name])
    plan = preflight.cuda_plan(torch_cuda)
    assert plan[0] == build
    assert words in plan[1]


# Running commands -------------------------------------------------------------------------------


def test_a_failing_command_shows_its_last_lines_and_the_log(made):
    script = 'seq -f "line %g" 100; echo No space left on device; exit 3'
    with pytest.raises(SetupError) as caught:
        environment.run_logged(made, ['sh', '-c', script])
    text = str(caught.value)
    for part in ('failed with status 3', 'line 100', 'No space left on device', str(made.log)):
        assert part in text
    assert 'line 50' not in text
    assert 'line 50' in made.log.read_text()


def test_an_interrupted_command_takes_along_what_it_started(made, monkeypatch):
    def interrupt(text):
        if text and (made.root / 'started').exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(environment, 'show', interrupt)
    script = "(trap '' TERM; touch started; sleep 60) & wait"
    with environment.locked(made), pytest.raises(KeyboardInterrupt):
        environment.run_logged(made, ['sh', '-c', script])
    start = time.monotonic()
    with (made.root / '.venv.lock').open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits for whatever still holds it
    assert time.monotonic() - start < 30


def test_a_terminal_shows_how_far_a_long_command_is(made, capsys, monkeypatch):
    script = 'echo "[59/78] c++"; echo "[60/78] c++"; sleep 0.6'
    environment.run_logged(made, ['sh', '-c', script])
    assert not capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    environment.run_logged(made, ['sh', '-c', script])
    assert re.search(r'\r +\d s \[60/78\] +\r', capsys.readouterr().out)


def test_environment_variables_that_lead_pip_astray_are_dropped(monkeypatch):
    for name in ('PYTHONPATH', 'PIP_TARGET'):
        monkeypatch.setenv(name, '/elsewhere')
    environ = environment.clean_environ(MAX_JOBS='1')
    assert '/elsewhere' not in environ.values()
    assert environ['MAX_JOBS'] == '1'
