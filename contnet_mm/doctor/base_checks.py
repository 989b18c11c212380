"""Checks of what the libraries need: Python, torch, the GPU, numpy, opencv."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from .commands import OPENMMLAB, pip, reinstall, stack_of, tried, uninstall
from .diagnosis import Diagnosis, note, ok, parse, problem, warning
from .facts import LIBRARIES, Facts

DRIVER = 'sudo ubuntu-drivers install  # Debian: sudo apt install nvidia-driver'


def check_environment(facts: Facts) -> Iterator[Diagnosis]:
    """Point at ``make setup`` where somebody asks about a bare Python in a checkout."""
    checkout = Path(facts.tools).parent
    if not facts.has('torch') and (checkout / 'Makefile').is_file():
        text = 'a bare Python; make setup builds an environment with everything'
        yield note('environment', text, shlex.join(['make', '-C', str(checkout), 'setup']))


def check_python(facts: Facts) -> Iterator[Diagnosis]:
    """Check Python's version, and that pip is there."""
    version = '.'.join(map(str, facts.python))
    if facts.python >= (3, 10):
        yield ok('Python', f'{version} in {facts.prefix}')
    else:
        text = f'{version}, but contnet_mm needs 3.10 or newer'
        yield problem('Python', text, 'python3.11 -m venv contnet-env')
    if not facts.has('pip'):
        text = 'is missing, and the commands below start with it'
        yield problem('pip', text, f'{facts.command} -m ensurepip')


def check_setuptools(facts: Facts) -> Iterator[Diagnosis]:
    """Check that pkg_resources is there, which original distributions import."""
    asking = [name for name in ('mmengine', 'openmim') if facts.get(name)]
    if asking and not facts.has('pkg_resources'):
        found = facts.get('setuptools')
        text = f'{" and ".join(asking)} import pkg_resources, which '
        text += f'setuptools {found.version} has no more' if found else 'comes with setuptools'
        yield problem('setuptools', text, pip(facts, 'install', 'setuptools<70'))


def check_torch(facts: Facts) -> Iterator[Diagnosis]:
    """Check that torch is there, imports and is new enough."""
    version, said = facts.version('torch'), facts.answers('torch')
    install = pip(facts, 'install', *tried(facts, 'torch', 'torchvision'))
    if not facts.has('torch'):
        yield problem('torch', 'is missing', install)
    elif (0, 0, 0) < parse(version) < (2, 1):
        yield problem('torch', f'{version}, but contnet_mm needs 2.1 or newer', install)
    elif said.get('import'):
        text = f'{version} does not import: {said["import"]}'
        yield problem('torch', text, reinstall(facts, f'torch=={_public(version)}'))
    else:
        built = f'for CUDA {said["cuda"]}' if said.get('cuda') else 'without CUDA'
        yield ok('torch', f'{version}, built {built}')


def _public(version: str) -> str:
    """Drop the part of a version that only one index knows, such as +cpu."""
    return version.split('+')[0]


def check_torchvision(facts: Facts) -> Iterator[Diagnosis]:
    """Check that torchvision belongs to torch; mmdet needs it."""
    vision, torch = facts.version('torchvision'), facts.version('torch')
    error = facts.answers('torch').get('torchvision')
    major, minor, patch = parse(torch)
    # Since torch 2.0 the minor versions differ by 15; patches are equal since 2.1.
    fitting = f'0.{minor + 15}.{patch}' if major == 2 else _public(vision)
    wanted = f'torchvision=={fitting}' if fitting else tried(facts, 'torchvision')[0]
    fix = reinstall(facts, wanted)
    if not facts.has('torchvision'):
        needed = facts.has('mmdet') or 'mmdet' in facts.needed
        text = 'is missing; mmdet needs it'
        yield (problem if needed else note)('torchvision', text, fix, ('torch',))
    elif vision and torch and parse(vision)[:2] != parse(fitting)[:2]:
        text = f'{vision} does not belong to torch {torch}, which goes with {fitting}'
        yield problem('torchvision', text, fix, ('torch',))
    elif error:
        text = f'{vision} fails beside torch {torch}, as if from another index: {error}'
        fix = reinstall(facts, f'torch=={_public(torch)}', wanted)
        yield problem('torchvision', text, fix, ('torch',))
    elif torch:
        yield ok('torchvision', f'{vision}, which goes with torch {torch}')


def check_gpu(facts: Facts) -> Iterator[Diagnosis]:
    """Check whether torch can use the GPU that is there."""
    said = facts.answers('torch')
    driver = str(said.get('driver') or '')
    if not said or said.get('import'):
        return
    if said.get('hip'):
        yield note('GPU', 'torch is built for ROCm, on which nothing here was tried')
    elif said.get('gpus'):
        yield from (_check_gpu(facts, *gpu) for gpu in said['gpus'])
    elif 'too old' in driver:
        text = f'{driver} Update it, or install a torch built for a CUDA before {said["cuda"]}'
        yield problem('GPU', text, DRIVER)
    elif not facts.has_gpu:
        yield note('GPU', 'none is seen: training runs on the CPU')
    elif 'No CUDA GPUs' in driver:
        text = 'one is there, but hidden from torch: training runs on the CPU'
        yield note('GPU', text, 'unset CUDA_VISIBLE_DEVICES')
    elif said.get('cuda'):
        text = f'one is there, but torch cannot use it: {driver} (A container sees it only if it '
        yield warning('GPU', f'{text}is started with --gpus all.)', DRIVER)
    else:
        text = 'one is there, but torch is built without CUDA; build mmcv again afterwards'
        pair = [f'{name}=={_public(facts.version(name))}' for name in ('torch', 'torchvision')]
        yield warning('GPU', text, reinstall(facts, *pair))


def _check_gpu(facts: Facts, name: str, capability: Sequence[int], error: str | None) -> Diagnosis:
    arch, archs = 'sm_{}{}'.format(*capability), ' '.join(facts.answers('torch')['archs'])
    if not error:
        return ok('GPU', f'{name} ({arch}), on which torch computes')
    if 'no kernel image' not in error:
        return problem('GPU', f'{name} ({arch}) is there, but does not compute: {error}')
    built = [int(number) for number in re.findall(r'sm_(\d+)', archs)]
    newer = not built or 10 * capability[0] + capability[1] > max(built)
    pair = tried(facts, 'torch', 'torchvision', stack='onedl' if newer else 'openmmlab')
    text = f'torch is not built for {name} ({arch}), but for {archs}; build mmcv again afterwards'
    return problem('GPU', text, pip(facts, 'install', *pair))


def check_numpy(facts: Facts) -> Iterator[Diagnosis]:
    """Check numpy's major version against torch and the stack."""
    numpy, torch = facts.version('numpy'), facts.version('torch')
    error = facts.answers('torch').get('numpy')
    original = stack_of(facts) == 'openmmlab' and any(facts.owners(m) for m in OPENMMLAB)
    older = pip(facts, 'install', 'numpy<2', 'opencv-python<4.12')
    if not facts.has('numpy'):
        yield problem('numpy', 'is missing', older if original else pip(facts, 'install', 'numpy'))
    elif parse(numpy) >= (2,) and (0, 0, 0) < parse(torch) < (2, 3):
        yield problem('numpy', f'{numpy}, but torch {torch} is built for numpy 1', older)
    elif parse(numpy) >= (2,) and original:
        text = f'{numpy}, but the original OpenMMLab libraries were made for numpy 1'
        yield warning('numpy', text, older)
    elif error:
        text = f'{numpy} fails beside torch {torch}: {error}'
        yield problem('numpy', text, reinstall(facts, f'numpy=={numpy}'), ('torch',))
    else:
        yield ok('numpy', numpy)


def check_opencv(facts: Facts) -> Iterator[Diagnosis]:
    """Check that cv2 imports and comes in one version."""
    owners, error = facts.owners('cv2'), facts.answers('cv2').get('import')
    said = ', '.join(f'{dist.name} {dist.version}' for dist in owners) or 'of unknown origin'
    remove = f'{uninstall(facts, *(dist.name for dist in owners))} && ' if owners else ''
    newest = max((dist.version for dist in owners), key=parse, default='')
    if not facts.has('cv2'):
        numpy_1 = (0, 0, 0) < parse(facts.version('numpy')) < (2,)
        fix = pip(facts, 'install', 'opencv-python<4.12' if numpy_1 else 'opencv-python')
        needed = any(map(facts.has, ('mmcv', *LIBRARIES)))
        yield (problem if needed else note)('opencv', 'is missing; mmcv needs it', fix)
    elif error:
        # The usual reason is a missing libGL, which the headless one does without.
        headless = 'opencv-python-headless' + (f'=={newest}' if newest else '')
        fix = remove + pip(facts, 'install', '--no-deps', headless)
        yield problem('opencv', f'{said} does not import: {error}', fix, ('numpy',))
    elif len({dist.version for dist in owners}) > 1:
        fix = remove + pip(facts, 'install', '--no-deps', f'opencv-python=={newest}')
        yield warning('opencv', f'cv2 comes in two versions: {said}', fix)
    else:
        yield ok('opencv', said)
