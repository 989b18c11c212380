"""The set-up: what it remembers, in what order it works, and how it runs commands."""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tests.helpers import ROOT
from tests.tools.environment import make_command, only_make
from tools.setup_env import __main__ as setup
from tools.setup_env import environment
from tools.setup_env.environment import STACKS, Env, SetupError


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
                assert name.startswith(('requirements/', 'tools/transitional/mmcv_ops/'))


@pytest.mark.parametrize(('stack', 'number'), [('onedl', 6), ('openmmlab', 0)])
def test_the_sources_of_the_transitional_distributions_belong_to_the_project(stack, number):
    (project,) = (step for step in setup.steps_of(Env(STACKS[stack])) if step.name == 'project')
    sources = [name for name in project.files if name.startswith('tools/transitional/')]
    assert len(sources) == number and not [name for name in sources if name.endswith('.md')]


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
    environment.clean_site_packages(env)
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


@pytest.mark.parametrize('index', ['', 'https://wheels.example/cpu'])
def test_only_torch_and_torchvision_come_from_the_given_index(made, index, monkeypatch):
    made.torch_index = index
    calls = []
    (made.root / 'requirements').symlink_to(ROOT / 'requirements')
    monkeypatch.setattr(setup, 'run_logged', lambda env, command, **_: calls.append(command))
    said = dict.fromkeys(('import', 'torchvision', 'cpu'))
    monkeypatch.setattr(setup, 'probe', lambda env, module: said)
    monkeypatch.setattr(setup, 'cuda_plan', lambda torch_cuda: (False, 'CPU ops'))
    for step in setup.steps_of(made):
        step.run(made)
    assert [made.python, '-m', 'pip', 'check'] in calls
    (torch,) = [words for words in calls if 'requirements/onedl-torch.txt' in words]
    option = ['--index-url', index] if index else []
    assert torch[1:6] == ['-m', 'uv', 'pip', 'install', '--python']
    assert torch[7:] == [*option, '-r', 'requirements/onedl-torch.txt']
    assert not [words for words in calls if '--index-url' in words and words != torch]


def test_what_uv_cannot_install_pip_tries(made, monkeypatch, capsys):
    calls = []

    def run(env, command, **extra):
        calls.append(command[1:])
        if 'uv' in command:
            raise SetupError('no route to host')

    monkeypatch.setattr(setup, 'run_logged', run)
    monkeypatch.setattr(setup, 'uv_settings', lambda env: {})
    setup.install_lock(made, '--no-deps', '-r', 'lock.txt')
    uv = ['-m', 'uv', 'pip', 'install', '--python', made.python, '--no-deps', '-r', 'lock.txt']
    assert calls == [uv, ['-m', 'pip', 'install', '--no-deps', '-r', 'lock.txt']]
    assert 'uv failed' in capsys.readouterr().out


def test_uv_is_told_what_pip_is_told_about_indexes(monkeypatch, tmp_path):
    settings = tmp_path / 'pip.conf'
    settings.write_text(
        '[global]\nindex-url = https://mirror.example/simple\ntrusted-host = a.example\n'
        'extra-index-url =\n    https://one.example/simple\n    https://two.example/simple\n'
    )
    for name in [name for name in os.environ if name.startswith('PIP_')]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('PIP_CONFIG_FILE', str(settings))
    monkeypatch.setenv('PIP_INDEX_URL', 'https://nearer.example/simple')
    monkeypatch.setenv('PIP_FIND_LINKS', '/wheels /more')
    found = environment.uv_settings(SimpleNamespace(python=sys.executable))
    assert found.pop('UV_INDEX_STRATEGY') == 'unsafe-best-match'
    expected = {
        'UV_DEFAULT_INDEX': 'https://nearer.example/simple',
        'UV_INDEX': 'https://one.example/simple https://two.example/simple',
        'UV_FIND_LINKS': '/wheels,/more',
        'UV_INSECURE_HOST': 'a.example',
    }
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize('order', [1, -1])
def test_a_variable_of_pip_counts_more_than_its_files_in_whatever_order_it_lists_them(made, order):
    lines = [""":env:.index-url='https://near'""", """global.index-url='https://far'"""][::order]
    make_command(made.python, '\n'.join(f'echo "{line}"' for line in lines))
    assert environment.uv_settings(made)['UV_DEFAULT_INDEX'] == 'https://near'


def test_torch_and_torchvision_must_import_together(made):
    make_command(made.python, '[ "$1" = -m ]')  # pip works, imports do not
    with pytest.raises(SetupError, match='must come from the same index'):
        setup.install_torch(made)


@pytest.mark.parametrize(
    ('said', 'works'),
    [
        ({'import': 'ImportError'}, {'cpu': False, 'cuda': False}),
        ({'import': None, 'cpu': 'RuntimeError', 'cuda': None}, {'cpu': False, 'cuda': True}),
        ({'import': None, 'cpu': None, 'cuda': 'RuntimeError'}, {'cpu': True, 'cuda': False}),
    ],
)
def test_ops_work_where_the_probe_finds_no_error(env, monkeypatch, said, works):
    monkeypatch.setattr(setup, 'probe', lambda *_: said)
    assert {device: setup.ops_work(env, device) for device in works} == works


def test_a_probe_that_crashes_counts_as_an_import_that_fails(made):
    make_command(made.python, 'kill -9 $$')
    assert environment.probe(made, 'mmcv')['import']


def test_mmcv_without_ops_is_built_afresh_once_and_then_refused(env, monkeypatch):
    calls = []
    monkeypatch.setattr(setup, 'pip_install', lambda env, *words, **options: calls.append(words))
    monkeypatch.setattr(setup, 'probe', lambda *_: {})
    monkeypatch.setattr(setup, 'cuda_plan', lambda torch_cuda: (False, 'CPU ops'))
    for works_after, refused in ((1, False), (2, False), (3, True)):
        calls.clear()
        monkeypatch.setattr(setup, 'ops_work', lambda *_, n=works_after: len(calls) == n)
        match = 'its ops were not built for cpu'
        with pytest.raises(SetupError, match=match) if refused else contextlib.nullcontext():
            setup.compile_mmcv(env)
        assert ['--no-cache-dir' in words for words in calls] == [False, True][:works_after]


def recorded(env, monkeypatch, **answers):
    """Run the step of mmcv and return pip's commands, with their environment variables."""
    calls = []
    monkeypatch.setattr(
        setup, 'run_logged', lambda env, words, **extra: calls.append((words[3:], extra))
    )
    monkeypatch.setattr(setup, 'probe', lambda *_: dict({'import': None, 'cpu': None}, **answers))
    monkeypatch.setattr(setup, 'cuda_plan', lambda torch_cuda: (False, 'CPU ops'))
    (env.root / 'requirements').symlink_to(ROOT / 'requirements')
    setup.install_mmcv(env)
    return calls


def test_ops_of_torchvision_are_the_first_choice_and_need_no_compiler(made, monkeypatch):
    assert made.ops == 'torchvision'
    uninstall, build, ops = recorded(made, monkeypatch)
    assert uninstall[0] == ['uninstall', '-y', 'onedl-mmcv', 'torchvision-ops-for-mmcv']
    assert '--no-cache-dir' in build[0] and build[1]['PYTHONPATH']
    assert ops[0][-1] == './tools/transitional/mmcv_ops'
    assert (made.state / 'ops').read_text() == 'torchvision'


def test_a_folder_without_torch_hides_it_from_a_build(tmp_path):
    (tmp_path / 'torch.py').write_text("raise ModuleNotFoundError('hidden from the build')\n")
    code = 'import torch'
    found = subprocess.run(
        [sys.executable, '-c', code],
        env={'PYTHONPATH': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert 'ModuleNotFoundError: hidden' in found.stderr


def test_the_kind_of_ops_stays_until_another_is_asked_for(made, monkeypatch):
    made.ops = 'mmcv'
    shutil.copytree(ROOT / 'tools/transitional/mmcv_ops', made.root / 'tools/transitional/mmcv_ops')
    recorded(made, monkeypatch)
    again = Env(made.stack, root=made.root)
    assert again.ops == 'mmcv'
    (step,) = (step for step in setup.steps_of(again) if step.name == 'mmcv')
    environment.write_stamp(again, step)
    for ops, done in (('', True), ('mmcv', True), ('torchvision', False)):
        env = Env(made.stack, root=made.root, ops=ops)
        (step,) = (step for step in setup.steps_of(env) if step.name == 'mmcv')
        assert environment.is_done(env, step) == done


def test_an_environment_from_before_the_choice_keeps_its_compiled_ops(made):
    (made.state / 'mmcv.stamp').write_text('some hash')
    assert Env(made.stack, root=made.root).ops == 'mmcv'


def test_a_switch_that_is_interrupted_leaves_neither_kind_on_record(made, monkeypatch):
    (made.state / 'mmcv.stamp').write_text('some hash')

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, 'run_logged', interrupt)
    (made.root / 'requirements').symlink_to(ROOT / 'requirements')
    with pytest.raises(KeyboardInterrupt):
        setup.install_mmcv(Env(made.stack, root=made.root, ops='torchvision'))
    assert made.ops_before() == ('', '')


def test_a_named_wheel_of_mmcv_is_installed_in_place_of_compiling(made, monkeypatch):
    env = Env(made.stack, root=made.root, mmcv_wheel='/somewhere/mmcv.whl')
    assert env.ops == 'mmcv'
    _, (words, _) = recorded(env, monkeypatch)
    assert words == ['install', '--no-deps', '--force-reinstall', '/somewhere/mmcv.whl']
    for ops in ('', 'mmcv'):  # a set-up that names no wheel would else compile over it
        assert Env(made.stack, root=made.root, ops=ops).mmcv_wheel == '/somewhere/mmcv.whl'
    assert not Env(made.stack, root=made.root, ops='torchvision').mmcv_wheel
    with pytest.raises(SetupError, match='OPS=torchvision and MMCV_WHEEL=x exclude each other'):
        Env(made.stack, root=made.root, ops='torchvision', mmcv_wheel='x')


def test_ops_that_do_not_work_are_refused_whatever_their_kind(made, monkeypatch):
    with pytest.raises(SetupError, match="torchvision's operations do not work in mmcv: .*broken"):
        recorded(made, monkeypatch, cpu='broken')
    env = Env(made.stack, root=made.root, mmcv_wheel='/somewhere/mmcv.whl')
    (made.root / 'requirements').unlink()
    with pytest.raises(SetupError, match='operations of /somewhere/mmcv.whl do not work'):
        recorded(env, monkeypatch, cpu='broken')


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
