"""Checks of what the libraries stand on: Python, torch, the GPU, numpy, opencv."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from .commands import OPENMMLAB, TRIED, pip, reinstall, stack_of, tried, uninstall
from .diagnosis import Diagnosis, parse
from .facts import LIBRARIES, Facts

DRIVER = 'sudo ubuntu-drivers install  # Debian: sudo apt install nvidia-driver'


def check_environment(facts: Facts) -> Iterator[Diagnosis]:
    """Point at the environment of ``make setup`` where somebody asks about a bare one."""
    if facts.hint and not facts.origins.get('torch'):
        text = 'a bare Python; the environment of make setup has everything'
        yield Diagnosis('note', 'environment', text, facts.hint)


def check_python(facts: Facts) -> Iterator[Diagnosis]:
    """Check Python's version."""
    version = '.'.join(map(str, facts.python))
    if facts.python >= (3, 10):
        yield Diagnosis('ok', 'Python', f'{version} in {facts.prefix}')
    else:
        text = f'{version}, but contnet_mm needs 3.10 or newer'
        yield Diagnosis('problem', 'Python', text, 'python3.11 -m venv contnet-env')
    if not facts.origins.get('pip'):
        text = 'is missing, and the commands below start with it'
        yield Diagnosis('problem', 'pip', text, f'{facts.command} -m ensurepip')


def check_setuptools(facts: Facts) -> Iterator[Diagnosis]:
    """Check that pkg_resources is there, which original distributions import."""
    asking = [name for name in ('mmengine', 'openmim') if facts.get(name)]
    if asking and not facts.origins.get('pkg_resources'):
        found = facts.get('setuptools')
        text = f'{" and ".join(asking)} import pkg_resources, which '
        text += f'setuptools {found.version} has no more' if found else 'comes with setuptools'
        fix = pip(facts, 'install', 'setuptools<70')
        yield Diagnosis('problem', 'setuptools', text, fix)


def check_torch(facts: Facts) -> Iterator[Diagnosis]:
    """Check that torch is there, imports and is new enough."""
    version, said = facts.version('torch'), facts.probes.get('torch', {})
    if not facts.origins.get('torch'):
        fix = pip(facts, 'install', *tried(facts, 'torch', 'torchvision'))
        yield Diagnosis('problem', 'torch', 'is missing', fix)
    elif (0, 0, 0) < parse(version) < (2, 1):
        text = f'{version}, but contnet_mm needs 2.1 or newer'
        fix = pip(facts, 'install', *tried(facts, 'torch', 'torchvision'))
        yield Diagnosis('problem', 'torch', text, fix)
    elif said.get('import'):
        text = f'{version} does not import: {said["import"]}'
        yield Diagnosis('problem', 'torch', text, reinstall(facts, f'torch=={_public(version)}'))
    else:
        built = f'for CUDA {said["cuda"]}' if said.get('cuda') else 'without CUDA'
        yield Diagnosis('ok', 'torch', f'{version}, built {built}')


def _public(version: str) -> str:
    """Drop the part of a version that only one index knows, such as +cpu."""
    return version.split('+')[0]


def check_torchvision(facts: Facts) -> Iterator[Diagnosis]:
    """Check that torchvision belongs to torch; mmdet needs it."""
    vision, torch = facts.version('torchvision'), facts.version('torch')
    error = facts.probes.get('torch', {}).get('torchvision')
    major, minor, patch = parse(torch)
    # Since torch 2.0 the minor versions go 15 apart; patches go together since 2.1.
    fitting = f'0.{minor + 15}.{patch}' if major == 2 else _public(vision)
    fitting = fitting or TRIED[stack_of(facts)]['torchvision'][1]
    fix = reinstall(facts, f'torchvision=={fitting}')
    if not facts.origins.get('torchvision'):
        wanted = facts.origins.get('mmdet') or 'mmdet' in facts.needed
        status = 'problem' if wanted else 'note'
        yield Diagnosis(status, 'torchvision', 'is missing; mmdet needs it', fix, ('torch',))
    elif vision and torch and parse(vision)[:2] != parse(fitting)[:2]:
        text = f'{vision} does not belong to torch {torch}, which goes with {fitting}'
        yield Diagnosis('problem', 'torchvision', text, fix, ('torch',))
    elif error:
        text = f'{vision} fails beside torch {torch}, as if from another index: {error}'
        fix = reinstall(facts, f'torch=={_public(torch)}', f'torchvision=={fitting}')
        yield Diagnosis('problem', 'torchvision', text, fix, ('torch',))
    elif torch:
        yield Diagnosis('ok', 'torchvision', f'{vision}, which goes with torch {torch}')


def check_gpu(facts: Facts) -> Iterator[Diagnosis]:
    """Check whether torch can use the GPU that is there."""
    said = facts.probes.get('torch', {})
    if not said or said.get('import'):
        return
    driver = str(said.get('driver') or '')
    if said.get('hip'):
        yield Diagnosis('note', 'GPU', 'torch is built for ROCm, on which nothing here was tried')
    elif said.get('gpus'):
        for name, capability in said['gpus']:
            yield _check_arch(facts, name, tuple(capability), said['archs'])
    elif 'too old' in driver:
        text = f'{driver} Renew it, or install a torch that was built for an older CUDA than '
        text += str(said['cuda'])
        yield Diagnosis('problem', 'GPU', text, DRIVER)
    elif not facts.has_gpu:
        yield Diagnosis('note', 'GPU', 'none is seen: training runs on the CPU')
    elif 'No CUDA GPUs' in driver:
        text = 'one is there, but hidden from torch: training runs on the CPU'
        yield Diagnosis('note', 'GPU', text, 'unset CUDA_VISIBLE_DEVICES')
    elif said.get('cuda'):
        text = f'one is there, but torch cannot use it: {driver} (A container sees it only if it '
        text += 'is started with --gpus all.)'
        yield Diagnosis('warning', 'GPU', text, DRIVER)
    else:
        text = 'one is there, but torch is built without CUDA; build mmcv again afterwards'
        pair = [f'{name}=={_public(facts.version(name))}' for name in ('torch', 'torchvision')]
        yield Diagnosis('warning', 'GPU', text, reinstall(facts, *pair))


def _check_arch(
    facts: Facts, name: str, capability: tuple[int, int], archs: Collection[str]
) -> Diagnosis:
    arch = 'sm_{}{}'.format(*capability)
    if supports(capability, archs):
        return Diagnosis('ok', 'GPU', f'{name} ({arch}), which torch is built for')
    built = [int(number) for number in re.findall(r'sm_(\d+)', ' '.join(archs))]
    newer = not built or 10 * capability[0] + capability[1] > max(built)
    text = f'torch is not built for {name} ({arch}), but for {", ".join(archs)}; build mmcv again '
    text += 'afterwards'
    pair = tried(facts, 'torch', 'torchvision', stack='onedl' if newer else 'openmmlab')
    return Diagnosis('problem', 'GPU', text, pip(facts, 'install', *pair))


def supports(capability: tuple[int, int], archs: Collection[str]) -> bool:
    """Tell whether a GPU runs what was built for these architectures.

    Machine code (sm) runs on the same major version from its minor version on, portable code
    (compute) on everything newer; a trailing letter ties code to one architecture.

    >>> supports((8, 6), ['sm_80']), supports((12, 0), ['sm_90']), supports((12, 0), ['compute_90'])
    (True, False, True)
    """
    for kind, major, minor, letter in re.findall(
        r'\b(sm|compute)_(\d+)(\d)([a-z]?)\b', ' '.join(archs)
    ):
        built = (int(major), int(minor))
        same_major = built[0] == capability[0] or kind == 'compute'
        if built == capability or (not letter and same_major and built <= capability):
            return True
    return False


def check_numpy(facts: Facts) -> Iterator[Diagnosis]:
    """Check numpy's major version against torch and the stack."""
    numpy, torch = facts.version('numpy'), facts.version('torch')
    error = facts.probes.get('torch', {}).get('numpy')
    original = stack_of(facts) == 'openmmlab' and any(facts.owners(m) for m in OPENMMLAB)
    older = pip(facts, 'install', 'numpy<2', 'opencv-python<4.12')
    if not facts.origins.get('numpy'):
        fix = older if original else pip(facts, 'install', 'numpy')
        yield Diagnosis('problem', 'numpy', 'is missing', fix)
    elif parse(numpy) >= (2,) and (0, 0, 0) < parse(torch) < (2, 3):
        text = f'{numpy}, but torch {torch} is built for numpy 1'
        yield Diagnosis('problem', 'numpy', text, older)
    elif parse(numpy) >= (2,) and original:
        text = f'{numpy}, but the original OpenMMLab libraries were made for numpy 1'
        yield Diagnosis('warning', 'numpy', text, older)
    elif error:
        text = f'{numpy} fails beside torch {torch}: {error}'
        yield Diagnosis('problem', 'numpy', text, reinstall(facts, f'numpy=={numpy}'), ('torch',))
    else:
        yield Diagnosis('ok', 'numpy', numpy)


def check_opencv(facts: Facts) -> Iterator[Diagnosis]:
    """Check that cv2 imports and comes in one version."""
    owners = facts.owners('cv2')
    error = facts.probes.get('cv2', {}).get('import')
    said = ', '.join(f'{dist.name} {dist.version}' for dist in owners) or 'of unknown origin'
    remove = f'{uninstall(facts, *(dist.name for dist in owners))} && ' if owners else ''
    newest = max((dist.version for dist in owners), key=parse, default='')
    if not facts.origins.get('cv2'):
        numpy_1 = (0, 0, 0) < parse(facts.version('numpy')) < (2,)
        wanted = 'opencv-python' + ('<4.12' if numpy_1 else '')
        status = 'problem' if any(facts.origins.get(m) for m in ('mmcv', *LIBRARIES)) else 'note'
        yield Diagnosis(
            status, 'opencv', 'is missing; mmcv needs it', pip(facts, 'install', wanted)
        )
    elif error:
        # The usual reason is a missing libGL, which the headless one does without.
        headless = 'opencv-python-headless' + (f'=={newest}' if newest else '')
        fix = remove + pip(facts, 'install', '--no-deps', headless)
        yield Diagnosis('problem', 'opencv', f'{said} does not import: {error}', fix, ('numpy',))
    elif len({dist.version for dist in owners}) > 1:
        fix = remove + pip(facts, 'install', '--no-deps', f'opencv-python=={newest}')
        yield Diagnosis('warning', 'opencv', f'cv2 comes in two versions: {said}', fix)
    else:
        yield Diagnosis('ok', 'opencv', said)
