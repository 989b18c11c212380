"""What the machine has, and what it lacks: looked at before anything is downloaded."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from .environment import SetupError, ask, is_usable

GB = 1 << 30
# What Debian splits from Python, by the ending of its package.
PARTS = {'venv': 'module venv or ensurepip', 'dev': 'Python.h, which mmcv needs'}
INSPECT = """
import importlib.util as u, json, os, sys, sysconfig
venv = all(u.find_spec(name) for name in ('venv', 'ensurepip'))
dev = os.path.isfile(os.path.join(sysconfig.get_path('include'), 'Python.h'))
print(json.dumps([sys.version_info[:2], ['venv'] * (not venv) + ['dev'] * (not dev)]))
"""


class Python(NamedTuple):
    """What matters of an interpreter before an environment is made from it."""

    path: str
    version: tuple[int, int]
    missing: list[str]  # those of PARTS that are not there

    @property
    def name(self):
        """Return for instance python3.11, which is also its Debian package."""
        return 'python{}.{}'.format(*self.version)


def inspect_python(path):
    """Return a Python for an interpreter that runs, None for anything else."""
    found = ask(path, '-c', INSPECT)
    return Python(str(path), tuple(found[0]), found[1]) if found else None


def python_candidates(versions):
    """Return the interpreters on PATH and those of pyenv that may have these versions."""
    folders = [Path(folder) for folder in os.environ.get('PATH', '').split(os.pathsep) if folder]
    pyenv = Path(os.environ.get('PYENV_ROOT', '~/.pyenv')).expanduser()
    folders += sorted(pyenv.glob('versions/*/bin'))
    names = ['python{}.{}'.format(*version) for version in versions] + ['python3']
    return [folder / name for name in names for folder in folders if (folder / name).is_file()]


def find_python(stack, wanted=''):
    """Return the interpreter to build from, the wanted one or a complete one if there is any."""
    paths = [shutil.which(wanted) or wanted] if wanted else python_candidates(stack.pythons)
    pythons = [python for python in map(inspect_python, paths) if python]
    accepted = [python for python in pythons if python.version in stack.pythons]
    if accepted:
        return min(accepted, key=lambda python: len(python.missing))  # the first of equals
    if wanted:
        what = f'is {pythons[0].name}' if pythons else 'does not run'
        raise SetupError(f'PYTHON={wanted} {what}; STACK={stack.name} needs {stack.accepted}.')
    best = 'python{}.{}'.format(*stack.pythons[0])
    raise SetupError(
        f'no Python {stack.accepted} found (STACK={stack.name}).\n'
        f'  Debian/Ubuntu: apt install {best} {best}-venv {best}-dev; with pyenv: pyenv install '
        f'{best[6:]}; else give one: make setup STACK={stack.name} PYTHON=/path/to/{best}'
    )


def compiler_problems():
    """Return what is wrong with the C++ compiler, which builds mmcv's ops."""
    advice = '\n  Debian/Ubuntu: apt install g++; or name yours: CXX=/path/to/c++ make setup'
    command = shlex.split(os.environ.get('CXX', '')) or ['c++']
    probe = [*command, '-std=c++17', '-fsyntax-only', '-x', 'c++', '-']
    try:
        found = subprocess.run(probe, input=b'#include <vector>\n', stderr=subprocess.PIPE)
    except OSError:
        return [f'no C++ compiler: {command[0]!r} does not run; mmcv needs it.{advice}']
    if found.returncode:
        said = found.stderr.decode(errors='replace').strip().partition('\n')[0]
        return [f'the C++ compiler {command[0]!r} does not compile C++17: {said}{advice}']
    return []


def library_problems():
    """Return which shared libraries are missing without which opencv-python does not import."""
    missing = {}
    for name, package in (('libGL.so.1', 'libgl1'), ('libgthread-2.0.so.0', 'libglib2.0-0')):
        try:
            ctypes.CDLL(name)
        except OSError:
            missing[name] = package
    packages = ' '.join(missing.values())
    text = f'opencv-python needs {" and ".join(missing)}.\n  Debian/Ubuntu: apt install {packages}'
    return [text] if missing else []


def disk_problems(needs):
    """Return which disks are too small for {folder: GB}; folders on one disk are added up."""
    disks = {}
    for folder in needs:
        disks.setdefault(os.stat(folder).st_dev, []).append(folder)
    problems = []
    for folders in disks.values():
        free = shutil.disk_usage(folders[0]).free / GB
        needed = sum(needs[folder] for folder in folders)
        if free < needed:
            problems.append(
                f'too little disk at {" and ".join(map(str, folders))}: {free:.1f} GB free, '
                f'{needed:.1f} GB needed.\n  Make room, or point TMPDIR to a larger disk.'
            )
    return problems


def preflight(env, todo, wanted):
    """Check all that can be checked before anything is downloaded; raise all problems at once.

    Returns:
        The interpreter that the environment will be made from, None where it is there already.
    """
    compiles = env.ops == 'mmcv' and not env.mmcv_wheel and 'mmcv' in {s.name for s in todo}
    problems, new = [], None
    try:
        new = None if is_usable(env) else find_python(env.stack, wanted)
        python = new or inspect_python(env.python)
        for part in python.missing:
            if new if part == 'venv' else compiles:
                advice = f'  Debian/Ubuntu: apt install {python.name}-{part}'
                problems.append(f'{python.path} has no {PARTS[part]}.\n{advice}')
    except SetupError as error:
        problems.append(str(error))
    problems += compiler_problems() if compiles else []
    problems += library_problems()
    room = sum(step.disk_gb for step in todo)
    if 'cpu' in env.torch_index:  # without torch's CUDA libraries
        room = min(room, 3.0)
    problems += disk_problems({env.root: room, Path(tempfile.gettempdir()): 2.0 if room else 0.0})
    if problems:
        lines = [f'- {text}' for text in problems]
        raise SetupError('\n'.join(['nothing was installed, because of this:', *lines]))
    return new


def output_of(command):
    """Return a command's output, None where it is missing or fails."""
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=60).decode()
    except (OSError, subprocess.SubprocessError):
        return None


def cuda_plan(torch_cuda):
    """Return whether to build mmcv's CUDA ops for torch's CUDA version, and why.

    Raises:
        SetupError: If there is a GPU, but no nvcc that fits: CPU ops would fail on it.
    """
    if output_of(['nvidia-smi']) is None:
        return False, 'CPU ops (no working nvidia-smi here).'
    if not torch_cuda:
        return False, 'CPU ops (there is a GPU, but this torch was built without CUDA).'
    home = os.environ.get('CUDA_HOME')
    said = output_of([os.path.join(home, 'bin', 'nvcc') if home else 'nvcc', '--version'])
    release = re.search(r'release (\d+)\.', said or '')
    major = torch_cuda.split('.')[0]
    if release is None or release.group(1) != major:
        has = f'nvcc {release.group(1)}' if release else 'no nvcc'
        pip = f"'cuda-toolkit[nvcc,nvvm,crt,cccl]=={torch_cuda}.*' (docs/install.md)"
        # Before CUDA 13 pip's distributions have no nvcc.
        compiler = f', or its compiler with pip, {pip},' if int(major) >= 13 else ''
        raise SetupError(
            f'OPS=mmcv on this machine with a GPU needs an nvcc of CUDA {major}; {has} was found.\n'
            f'  Install the CUDA toolkit {major}{compiler} and set CUDA_HOME;\n'
            "  or name a compiled wheel (MMCV_WHEEL=); or take torchvision's "
            'operations, which run on the GPU: make setup OPS=torchvision'
        )
    return True, 'CUDA ops, which is unproven: nobody has run this build of ours on a GPU yet.'


def compile_jobs():
    """Return how many compilers may run: one per core, and 2.5 GB of memory for each."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    fitting = max(1, min(len(os.sched_getaffinity(0)), int(memory / (2.5 * GB))))
    return os.environ.get('MAX_JOBS') or str(fitting)
