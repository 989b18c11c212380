"""The environment that is built: its folder, its stamps, its lock, and commands run in it.

Whatever the user has to fix is raised as a SetupError.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PROBE = ROOT / 'contnet_mm' / 'doctor' / 'probe.py'
# Options of pip: the variable of uv, and what separates several values in it.
UV_NAMES = {
    'index-url': ('UV_DEFAULT_INDEX', ' '),
    'extra-index-url': ('UV_INDEX', ' '),
    'find-links': ('UV_FIND_LINKS', ','),
    'constraint': ('UV_CONSTRAINT', ' '),
    'trusted-host': ('UV_INSECURE_HOST', ' '),
    'cert': ('SSL_CERT_FILE', ' '),
    'proxy': ('ALL_PROXY', ' '),
    'timeout': ('UV_HTTP_TIMEOUT', ' '),
    'default-timeout': ('UV_HTTP_TIMEOUT', ' '),
}
RECIPE = '1'  # part of every stamp: raise it when a step starts to do something else


class SetupError(Exception):
    """Something that the user has to fix; the message says what and how."""


class Stack(NamedTuple):
    """One set of distributions that gives the import names mmengine, mmcv, mmdet, mmseg, ..."""

    name: str
    venv: str
    pythons: tuple[tuple[int, int], ...]  # the tested one first
    transitional: bool  # whether the names mmdet and mmsegmentation have to be added

    @property
    def accepted(self):
        """Return the Python versions for a message."""
        return ' or '.join('{}.{}'.format(*version) for version in self.pythons)


STACKS = {
    'onedl': Stack('onedl', '.venv', ((3, 11), (3, 10), (3, 12)), True),
    'openmmlab': Stack('openmmlab', '.venv-openmmlab', ((3, 10),), False),
}


class Env:
    """The environment that is being built."""

    def __init__(self, stack, root=ROOT, torch_index='', ops='', mmcv_wheel=''):
        self.stack = stack
        self.root = root
        self.torch_index = torch_index
        self.path = root / stack.venv
        self.python = self.path / 'bin' / 'python'
        self.state = self.path / '.contnet_mm'  # stamps and logs
        self.log = self.state / 'venv.log'
        self.lock = ()  # file descriptor of the lock while it is held
        if ops == 'torchvision' and mmcv_wheel:
            raise SetupError(f'OPS=torchvision and MMCV_WHEEL={mmcv_wheel} exclude each other.')
        before, wheel = self.ops_before()
        self.ops = ops or ('mmcv' if mmcv_wheel else before or 'torchvision')
        self.mmcv_wheel = mmcv_wheel or (wheel if self.ops == 'mmcv' else '')

    def ops_before(self):
        """Return whose operations are there ('mmcv', 'torchvision', '') and from which wheel."""
        if (self.state / 'ops').is_file():
            ops, _, wheel = (self.state / 'ops').read_text().partition(' ')
            return ops, wheel
        # Before there was a choice they were always compiled.
        return ('mmcv' if (self.state / 'mmcv.stamp').is_file() else ''), ''

    def remember_ops(self):
        """Record whose operations are there, and the wheel that they came from, if any."""
        (self.state / 'ops').write_text(f'{self.ops} {self.mmcv_wheel}'.strip())

    def requirements(self, part=''):
        """Return the path of a requirements file of this stack, relative to the root."""
        return f'requirements/{self.stack.name}{part}.txt'


def step_key(env, step):
    """Return the hash of what the step depends on, which this code is deliberately not."""
    digest = hashlib.sha256(f'{RECIPE}\n{step.name}\n{env.stack}\n{step.variant}'.encode())
    for name in step.files:
        digest.update(name.encode() + b'\0' + (env.root / name).read_bytes())
    return digest.hexdigest()


def is_done(env, step):
    """Return whether the step's stamp is there and still true."""
    stamp = env.state / f'{step.name}.stamp'
    return stamp.is_file() and stamp.read_text() == step_key(env, step)


def write_stamp(env, step):
    """Record that the step is finished; a stamp that was cut off equals no key."""
    (env.state / f'{step.name}.stamp').write_text(step_key(env, step))


@contextlib.contextmanager
def locked(env):
    """Keep a second set-up out of the environment; the kernel frees the lock in any case."""
    with (env.root / f'{env.stack.venv}.lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SetupError('another make setup, or a pip that it left, is at work.') from None
        env.lock = (file.fileno(),)
        yield


def clean_environ(**extra):
    """Return os.environ without what would lead pip or Python out of the environment."""
    astray = ['PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_USER', 'VIRTUAL_ENV']
    astray += ['UV_TARGET', 'UV_PREFIX', 'UV_SYSTEM_PYTHON']
    kept = {key: value for key, value in os.environ.items() if key not in astray}
    return {**kept, 'PIP_DISABLE_PIP_VERSION_CHECK': '1', 'PIP_NO_INPUT': '1', **extra}


def uv_settings(env):
    """Return what pip is told about indexes, as the environment variables of uv.

    uv reads none of pip's files and variables, and whoever has a mirror has named it to pip.
    """
    command = [str(env.python), '-m', 'pip', 'config', 'list']
    said = subprocess.run(command, env=clean_environ(), stdout=subprocess.PIPE, text=True).stdout
    # Variables come last, since they count most: ":env:.index-url='...'", "global.index-url='...'".
    lines = sorted(said.splitlines(), key=lambda line: line.startswith(':env:'))
    found = {}
    for key, value in re.findall(r"^[\w:]+\.([\w-]+)=('.*'|\".*\")$", '\n'.join(lines), re.M):
        name, separator = UV_NAMES.get(key, ('', ''))
        if name:
            found[name] = separator.join(ast.literal_eval(value).split())
    return {'UV_INDEX_STRATEGY': 'unsafe-best-match', **found}  # the best of all indexes, as pip


def ask(python, *words):
    """Return what Python prints as JSON when it runs this script or code, None if it fails."""
    command = [str(python), *map(str, words)]
    options = {'stderr': subprocess.DEVNULL, 'env': clean_environ(), 'timeout': 300}
    try:
        return json.loads(subprocess.check_output(command, **options))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def probe(env, module):
    """Return what the doctor's probe of a module says; under 'import' why it says nothing."""
    return ask(env.python, PROBE, module) or {'import': 'the probe crashed'}


def run_logged(env, command, **extra):
    """Run a command with its output in the log and its progress on a terminal."""
    command = [str(word) for word in command]
    start = time.monotonic()
    with env.log.open('a') as log:
        log.write(f'\n$ {shlex.join(command)}\n')
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=str(env.root),
            env=clean_environ(**extra),
            start_new_session=True,  # its compilers can be ended with it
            pass_fds=env.lock,  # should we be killed, the lock holds until pip has ended too
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.5)
                show(f'      {time.monotonic() - start:.0f} s {progress(env.log)}')
        except BaseException:
            end_group(process)
            raise
        finally:
            show('')
    if process.returncode:
        lines = [line for line in env.log.read_text(errors='replace').splitlines() if line.strip()]
        last = '\n'.join(f'    {line[:300]}' for line in lines[-15:])
        raise SetupError(
            f'a command failed with status {process.returncode}:\n{last}\nThe whole log: {env.log}'
            '\nmake setup goes on where this stopped.'
        )


def show(text):
    """Show a line that the next one overwrites, where there is a terminal."""
    if sys.stdout.isatty():
        print(f'\r{text:40}\r', end='', flush=True)


def progress(log):
    """Return what ninja said last, such as [60/78], or nothing."""
    with log.open('rb') as file:
        file.seek(max(0, log.stat().st_size - 20000))
        return b''.join(re.findall(rb'\[\d+/\d+\](?= )', file.read())[-1:]).decode()


def end_group(process):
    """End a command with everything that it started."""
    with contextlib.suppress(ProcessLookupError):  # raised as soon as nothing of it is left
        os.killpg(process.pid, signal.SIGTERM)
        for _ in range(20):  # ninja needs a moment for its compilers, which are not in this group
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_usable(env):
    """Return whether the environment exists and works; a half-made or moved one counts as absent.

    A folder that is something else, or has another Python, is not removed: it is a SetupError.
    """
    if not env.path.exists():
        return False
    ours = (env.path / 'pyvenv.cfg').is_file() or env.state.is_dir()
    if not ours and any(env.path.iterdir()):
        raise SetupError(f'{env.path} exists and is no virtual environment; move it away.')
    code = 'import json, pip, sys; print(json.dumps(sys.version_info[:2]))'
    version = ask(env.python, '-c', code)
    script = env.path / 'bin' / 'pip'  # after a move, it and the others name a folder that is gone
    if not (version and script.is_file() and f'{env.path}/bin/python' in script.read_text()):
        return False
    if tuple(version) not in env.stack.pythons:
        raise SetupError(
            f'{env.path} has Python {version[0]}.{version[1]}; STACK={env.stack.name} needs '
            f'{env.stack.accepted}.\n'
            f'  Remove it and run make setup again: rm -r {shlex.quote(str(env.path))}'
        )
    return True


def make_venv(env, python):
    """Make the environment, in place of what may be left of a half-made one."""
    env.state.mkdir(parents=True, exist_ok=True)  # shows after an interruption that it is ours
    remove(env.state.glob('*'))
    remove(path for path in env.path.glob('*') if path != env.state)
    run_logged(env, [python, '-m', 'venv', env.path])


def clean_site_packages(env):
    """Remove what an interrupted pip or uv left, so that it is not taken for installed.

    Both write the file INSTALLER last, and pip renames what it is about to replace to ~something.
    """
    site = 'lib/python3*/site-packages'
    remove(env.path.glob(f'{site}/~*'))
    infos = env.path.glob(f'{site}/*.dist-info')
    remove(info for info in infos if not (info / 'INSTALLER').is_file())


def remove(paths):
    """Remove files and whole folders."""
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(str(path))
        else:
            path.unlink()
