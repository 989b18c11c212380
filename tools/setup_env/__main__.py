"""Build the environment of contnet_mm: the steps, and doing them in order.

Each finished step leaves a stamp in the environment with a hash of everything that the step depends
on: a second run has nothing to do, and an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .environment import (
    ROOT,
    STACKS,
    Env,
    SetupError,
    clean_site_packages,
    is_done,
    is_usable,
    locked,
    make_venv,
    probe,
    run_logged,
    uv_settings,
    write_stamp,
)
from .preflight import compile_jobs, cuda_plan, preflight

OPS_DISTRIBUTION = 'torchvision-ops-for-mmcv'  # of tools/transitional/mmcv_ops
OPS_FILES = tuple(f'tools/transitional/mmcv_ops/{n}' for n in ('pyproject.toml', 'mmcv/_ext.py'))


class Step(NamedTuple):
    """One resumable piece of the set-up."""

    name: str
    title: str
    run: Callable[[Env], None]
    files: tuple[str, ...]  # a change in one of these makes the step run again
    disk_gb: float = 0.0
    variant: str = ''  # what else, beside the files, the step depends on


def pip_install(env, *words, **extra):
    """Run the environment's pip."""
    run_logged(env, [env.python, '-m', 'pip', 'install', *words], **extra)


def install_lock(env, *words):
    """Install wheels by uv, in a third of the time that pip takes; by pip where uv fails."""
    command = [env.python, '-m', 'uv', 'pip', 'install', '--python', env.python]
    try:
        run_logged(env, [*command, *words], **uv_settings(env))
    except SetupError:
        print('      uv failed (the log says why); the same by pip', flush=True)
        pip_install(env, *words)


def install_packages(env):
    """Install the lock of the stack, pip and uv themselves first."""
    lock = (env.root / env.requirements()).read_text()
    pip_install(env, *re.findall(r'^(?:pip|uv)==\S+', lock, re.MULTILINE))
    install_lock(env, '--no-deps', '-r', env.requirements())


def install_torch(env):
    """Install torch and torchvision from one index; raise SetupError if they do not fit."""
    index = ['--index-url', env.torch_index] if env.torch_index else []
    install_lock(env, *index, '-r', env.requirements('-torch'))
    said = probe(env, 'torch')
    if said['import'] or said['torchvision']:
        raise SetupError(
            'torch and torchvision are installed but do not import together. They must come from '
            f'the same index; remove {env.path} and run it again.'
        )


def ops_work(env, device='cpu'):
    """Return whether mmcv's compiled ops are there and compute the right thing."""
    said = probe(env, 'mmcv')
    return not (said['import'] or said[device])


def install_mmcv(env):
    """Install mmcv with operations of the wanted kind, and remember which."""
    before, _ = env.ops_before()
    for record in ('ops', 'mmcv.stamp'):  # neither is true until this has ended
        (env.state / record).unlink(missing_ok=True)
    if before != env.ops:  # pip would take what is there for what is wanted
        names = re.findall(
            r'^[\w-]+(?===)', (env.root / env.requirements('-mmcv')).read_text(), re.M
        )
        run_logged(env, [env.python, '-m', 'pip', 'uninstall', '-y', *names, OPS_DISTRIBUTION])
    if env.ops == 'torchvision':
        install_mmcv_over_torchvision(env)
    elif env.mmcv_wheel:
        install_mmcv_wheel(env)
    else:
        compile_mmcv(env)
    env.remember_ops()


def install_mmcv_over_torchvision(env):
    """Install mmcv without operations of its own, and torchvision's in their place."""
    print("      torchvision's operations in place of mmcv's, which need a compiler", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        # The fork compiles whenever its build can import torch, whatever it is told.
        Path(folder, 'torch.py').write_text("raise ModuleNotFoundError('hidden from the build')\n")
        # A wheel without operations must not get into pip's cache, nor one with them out of it.
        words = ['--no-deps', '--no-build-isolation', '--no-cache-dir', '--no-binary', ':all:']
        pip_install(env, *words, '-r', env.requirements('-mmcv'), PYTHONPATH=folder)
    words = ['--no-deps', '--no-build-isolation', '--force-reinstall']
    pip_install(env, *words, './tools/transitional/mmcv_ops')
    if not ops_work(env):
        raise SetupError(f"torchvision's operations do not work in mmcv: {probe(env, 'mmcv')}")


def install_mmcv_wheel(env):
    """Install a wheel of mmcv that somebody has compiled; raise SetupError if it does not work."""
    pip_install(env, '--no-deps', '--force-reinstall', env.mmcv_wheel)
    if not ops_work(env):
        raise SetupError(
            f'the operations of {env.mmcv_wheel} do not work with this torch: {probe(env, "mmcv")}'
        )


def compile_mmcv(env):
    """Build mmcv against the installed torch; raise SetupError if twice no ops were built."""
    cuda, sentence = cuda_plan(probe(env, 'torch').get('cuda'))
    device = 'cuda' if cuda else 'cpu'
    print(f'      {sentence}', flush=True)
    options = {'MMCV_WITH_OPS': '1', 'FORCE_CUDA': str(int(cuda)), 'MAX_JOBS': compile_jobs()}
    if not cuda:  # mmcv asks torch for a GPU as well, and would then look for nvcc
        options['CUDA_VISIBLE_DEVICES'] = ''
    words = ['-v', '--no-deps', '--no-build-isolation', '-r', env.requirements('-mmcv')]
    pip_install(env, *words, **options)
    if not ops_work(env, device):
        # pip may hold a wheel from a build without ops, or one for another torch.
        print('      mmcv has no working ops; building it afresh', flush=True)
        pip_install(env, *words, '--no-cache-dir', '--force-reinstall', **options)
        if not ops_work(env, device):
            raise SetupError(
                f'mmcv is installed, but its ops were not built for {device} (mmcv._ext does not '
                f'import, or nms gives a wrong result). What the build said: {env.log}'
            )


def install_project(env):
    """Install contnet_mm in place and, beside the forks, the original distribution names."""
    options = ['--no-deps', '--no-build-isolation']
    if env.stack.transitional:
        folders = [f'./tools/transitional/{name}' for name in ('mmdet', 'mmsegmentation')]
        pip_install(env, *options, '--force-reinstall', *folders)
        for leftover in ('build', 'mmsegmentation.egg-info'):
            shutil.rmtree(env.root / folders[1] / leftover, ignore_errors=True)
    pip_install(env, *options, '-e', '.')


def check(env):
    """Check that versions fit together and libraries import; raise SetupError if ops fail."""
    run_logged(env, [env.python, '-m', 'pip', 'check'])
    imports = 'import mmengine, mmcv, mmdet, mmseg, mmpretrain, contnet_mm'
    run_logged(env, [env.python, '-c', imports])
    if not ops_work(env):
        raise SetupError(f"mmcv's ops do not work: {probe(env, 'mmcv')}")


def steps_of(env):
    """Return the steps in order; each names the files that it depends on."""
    lock, torch, mmcv = (env.requirements(part) for part in ('', '-torch', '-mmcv'))
    dev = 'requirements/dev.txt'  # for tests, lint and demo

    def install_dev(env):
        install_lock(env, '--no-deps', '-r', dev)

    project = ['setup.py', 'pyproject.toml', 'contnet_mm/version.py']
    if env.stack.transitional:  # sources, not what a build of them leaves
        for pattern in ('mm[ds]*/pyproject.toml', '*/mm_transitional/**/*.py', '*/mmseg/*.txt'):
            found = env.root.glob(f'tools/transitional/{pattern}')
            project += sorted(path.relative_to(env.root).as_posix() for path in found)
    if env.ops == 'torchvision':
        mmcv_step = Step(
            'mmcv', 'mmcv: half a minute', install_mmcv, (torch, mmcv, *OPS_FILES), 0.1, env.ops
        )
    elif env.mmcv_wheel:
        title = f'mmcv from {env.mmcv_wheel}: half a minute'
        mmcv_step = Step('mmcv', title, install_mmcv, (torch,), 0.2, env.mmcv_wheel)
    else:
        title = f'mmcv ops: {compile_jobs()} compilers at once (MAX_JOBS), 8-12 minutes with 2'
        mmcv_step = Step('mmcv', title, install_mmcv, (torch, mmcv), 0.2)
    steps = [
        Step('packages', f'{lock}: up to 2 minutes', install_packages, (lock,), 1.2),
        Step('torch', f'{torch}: up to 10 minutes, a big download', install_torch, (torch,), 4.6),
        mmcv_step,
        Step('dev', f'{dev}: less than a minute', install_dev, (dev,)),
        Step('project', 'contnet_mm in place: seconds', install_project, tuple(project)),
    ]
    files = tuple(dict.fromkeys(name for step in steps for name in step.files))
    title = 'pip check, imports, one op: 20 seconds'
    return [*steps, Step('check', title, check, files, 0.0, mmcv_step.variant)]


def build(env, wanted=''):
    """Do the steps that are not done yet; `wanted` is what the user gave as PYTHON=."""
    start = time.monotonic()
    steps = steps_of(env)
    usable = is_usable(env)
    todo = [step for step in steps if not (usable and is_done(env, step))]
    late = [f'PYTHON={wanted}'] if wanted and usable else []
    if env.torch_index and 'torch' not in {step.name for step in todo}:
        late.append(f'TORCH_INDEX={env.torch_index}')
    if late:
        print(
            f'NOTE: {" and ".join(late)} changes nothing, since {env.stack.venv} is there already; '
            f'remove it first: rm -r {shlex.quote(str(env.path))}'
        )
    if not todo:
        print(f'The environment {env.stack.venv} ({env.stack.name}) is complete.')
        return
    with locked(env):
        python = preflight(env, todo, wanted)
        if python:
            print(f'[1/{len(steps) + 1}] {env.stack.venv} from {python.path}: seconds', flush=True)
            make_venv(env, python.path)
        env.state.mkdir(exist_ok=True)
        for number, step in enumerate(steps, 2):
            if not is_done(env, step):  # whoever held the lock before may have done it
                print(f'[{number}/{len(steps) + 1}] {step.title}', flush=True)
                do(env, step)
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    print(f'Ready after {minutes} min {seconds} s: source {env.stack.venv}/bin/activate')


def do(env, step):
    """Do one step with a log of its own, and stamp it."""
    start = time.monotonic()
    clean_site_packages(env)
    env.log = env.state / f'{step.name}.log'
    env.log.write_text('')
    step.run(env)
    write_stamp(env, step)
    print(f'      done in {time.monotonic() - start:.0f} s', flush=True)


def main(argv=None):
    """Run the set-up and return the exit status."""
    parser = argparse.ArgumentParser(prog='setup_env', description=__doc__.partition('\n')[0])
    parser.add_argument('--stack', default='onedl', choices=sorted(STACKS))
    parser.add_argument('--python', default='', help='interpreter to build the environment from')
    parser.add_argument('--torch-index', default='', help='index of torch and torchvision')
    parser.add_argument(
        '--ops',
        default='',
        choices=('', 'torchvision', 'mmcv'),
        help="whose operations mmcv gets (default: as before, at first torchvision's)",
    )
    parser.add_argument('--mmcv-wheel', default='', help='a compiled mmcv: path or address')
    args = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has its reasons
            signal.signal(number, signal.default_int_handler)  # as Ctrl-C
    try:
        options = (args.torch_index, args.ops, args.mmcv_wheel)
        build(Env(STACKS[args.stack], ROOT, *options), args.python)
    except SetupError as error:
        print(f'setup: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nsetup: interrupted; make setup goes on where it stopped.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
