"""Checks of the OpenMMLab libraries, of mim, and of ConTNet in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .commands import (
    OPENMMLAB,
    build_mmcv,
    install_library,
    install_ops,
    install_transitional,
    pip,
    reinstall,
    stack_of,
    tried,
    uninstall,
)
from .diagnosis import Diagnosis, note, ok, problem, warning
from .facts import LIBRARIES, WATCHED, Facts

TITLES = {'onedl': 'maintained fork', 'openmmlab': 'original OpenMMLab'}
# What has to work before mmengine, mmcv and the libraries can.
BASE = ('Python', 'setuptools', 'torch', 'torchvision', 'numpy', 'opencv')
BELOW_MMCV = (*BASE, 'stack', 'mmengine', 'mmcv')
BELOW_LIBRARIES = (*BELOW_MMCV, 'mmcv ops', 'contnet_mm')


def check_stack(facts: Facts) -> Iterator[Diagnosis]:
    """Check that the libraries come from one set of distributions."""
    singles = {m: facts.owners(m)[0].name for m in OPENMMLAB if len(facts.owners(m)) == 1}
    stack = stack_of(facts)
    strangers = {
        module: name
        for module, name in singles.items()
        if name.startswith('onedl-') != (stack == 'onedl')
    }
    if strangers:
        text = f'most is from the {TITLES[stack]}, but not {", ".join(strangers.values())}'
        steps = [uninstall(facts, *strangers.values())]
        others = [module for module in strangers if module != 'mmcv']
        steps += [reinstall(facts, *tried(facts, *others))] if others else []
        steps += [build_mmcv(facts)] if 'mmcv' in strangers else []
        yield problem('stack', text, ' && '.join(steps))
    elif singles:
        yield ok('stack', TITLES[stack])


def check_owners(facts: Facts) -> Iterator[Diagnosis]:
    """Check that each library, and contnet_mm, is there and that one distribution brought it."""
    wanted = facts.needed or any(map(facts.has, LIBRARIES))
    needed = ('mmengine', *(['mmcv'] if wanted else []), *facts.needed, 'contnet_mm')
    for module in ('mmengine', 'mmcv', *LIBRARIES, 'contnet_mm'):
        owners = facts.owners(module)
        names = [f'{dist.name} {dist.version}' for dist in owners]
        fix = install_library(facts, module)
        if len(owners) > 1:
            fix = f'{uninstall(facts, *(dist.name for dist in owners))} && {fix}'
            text = f'two distributions overwrote each other: {" and ".join(names)}'
            yield problem(module, text, fix)
        elif owners and not facts.has(module):
            yield problem(module, f'{names[0]} is recorded, but its files are gone', fix)
        elif owners:
            where = f', in place from {owners[0].editable}' if owners[0].editable else ''
            yield ok(module, names[0] + where)
        elif facts.has(module):
            folder = Path(facts.origins[module]).parents[1]
            text = f'comes from {folder}, but is not installed: mim does not see it'
            if module != 'contnet_mm':
                fix = pip(facts, 'install', '--no-deps', '--no-build-isolation', '-e', str(folder))
            yield warning(module, text, fix)
        else:
            yield (problem if module in needed else note)(module, 'is missing', fix)


def check_imports(facts: Facts) -> Iterator[Diagnosis]:
    """Check that mmengine and mmcv import."""
    for module in ('mmengine', 'mmcv'):
        error = facts.answers(module).get('import')
        if error:
            causes = (*BASE, 'stack', 'mmengine', module)
            text = f'does not import: {error}'
            yield problem(module, text, _fix_import(facts, module, str(error)), causes)


def _fix_import(facts: Facts, module: str, error: str) -> str:
    """Return the command that installs what an import misses or refuses, or the module itself."""
    missing = re.search(r"No module named '(\w+)", error)
    if missing and missing[1] not in WATCHED:
        return pip(facts, 'install', missing[1])
    # The libraries assert which versions of mmcv and mmengine they work with.
    refused = re.search(r'(mmcv|mmengine)==\S+ is used but incompatible', error, re.IGNORECASE)
    if refused and refused[1].lower() == 'mmengine':
        return reinstall(facts, *tried(facts, 'mmengine'))
    return install_library(facts, 'mmcv' if refused else module)


def check_ops(facts: Facts) -> Iterator[Diagnosis]:
    """Check whose ops mmcv has and that one works, on the CPU and on the GPU."""
    said, owners = facts.answers('mmcv'), facts.owners('mmcv')
    torch = facts.answers('torch')
    if 'mmcv' not in facts.probes or said.get('import'):
        return
    fix = build_mmcv(facts)
    is_lite = bool(owners) and owners[0].name.endswith('-lite')
    if is_lite:
        fix = f'{uninstall(facts, owners[0].name)} && {fix}'
    if said.get('cpu') and not (said.get('ops') or is_lite):
        text = f"are missing; the command installs torchvision's in their place: {said['cpu']}"
        yield problem('mmcv ops', text, install_ops(facts) or fix, BELOW_MMCV)
    elif said.get('cpu'):
        text = f'are built for another torch, or wrong: {said["cpu"]}'
        yield problem('mmcv ops', text, fix, BELOW_MMCV)
    elif torch.get('gpus') and said.get('cuda'):
        text = f'do not run on the GPU (to build them takes an nvcc of CUDA {torch["cuda"]}): '
        text += str(said['cuda'])
        yield problem('mmcv ops', text, fix, (*BELOW_MMCV, 'GPU'))
    else:
        computes = f'nms computes on {"CPU and GPU" if torch.get("gpus") else "CPU"}'
        if said.get('ops') == 'torchvision':
            text = "are torchvision's: those that our configs need; others raise when called, and "
            yield note('mmcv ops', f"{text}the command compiles mmcv's own; {computes}", fix)
        else:
            cuda = str(said.get('built_for'))
            built = f'and CUDA {cuda}' if cuda[:1].isdigit() else 'alone'
            yield ok('mmcv ops', f'are compiled for the CPU {built}; {computes}')


def check_checkpoints(facts: Facts) -> Iterator[Diagnosis]:
    """Check that mmengine finds ConTNet and loads what it saved, which torch 2.6 made stricter."""
    said = facts.answers('mmengine')
    if said.get('reload'):
        version, torch = facts.version('mmengine'), facts.version('torch')
        text = f'mmengine {version} cannot load its own ones beside torch {torch}, so that '
        text += '--resume and test fail. The command switches a protection off: load no files of '
        text += f'strangers while it is set ({said["reload"]})'
        fix = 'export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1'
        yield problem('checkpoints', text, fix, (*BASE, 'stack', 'mmengine'))
    elif said and not said.get('import'):
        yield ok('checkpoints', 'mmengine loads what it saves')
    if said.get('resolve'):
        text = f'does not find contnet_mm.ConTNet: {said["resolve"]}'
        causes = (*BASE, 'contnet_mm', 'mmengine')
        yield problem('mmengine', text, install_library(facts, 'mmengine'), causes)


def check_mim(facts: Facts) -> Iterator[Diagnosis]:
    """Check that the shell's ``mim`` is the one of this environment."""
    if not facts.has('mim'):
        text = 'is missing; commands here start with it'
        yield warning('mim', text, install_library(facts, 'mim'), ('stack',))
    elif Path(facts.mim).parent.resolve() != Path(facts.scripts).resolve():
        said = f'runs {facts.mim}' if facts.mim else 'finds none'
        text = f'the shell {said}, not the one of {facts.prefix}'
        yield warning('mim', text, f'export PATH={facts.scripts}:$PATH')
    else:
        yield ok('mim', facts.mim)


def check_libraries(facts: Facts) -> Iterator[Diagnosis]:
    """Check ConTNet in each library, its configs as bases, and ``mim train``."""
    for library in (name for name in LIBRARIES if name in facts.probes):
        said, causes = facts.answers(library), (*BELOW_LIBRARIES, library)
        error = said.get('import') or said.get('resolve')
        if error:
            text = f'does not find contnet_mm.ConTNet: {error}'
            yield problem(library, text, _fix_import(facts, library, str(error)), causes)
        else:
            yield ok(library, 'finds contnet_mm.ConTNet')
        again = install_transitional(facts, library) or install_library(facts, library)
        if said.get('base'):
            text = f'its configs cannot be bases: {said["base"]}'
            yield problem(f'{library}::', text, again, causes)
        if said.get('mim'):
            yield problem(f'mim train {library}', f'does not work: {said["mim"]}', again, causes)
        if not (error or said.get('base') or said.get('mim')):
            yield ok(f'mim train {library}', f'and {library}:: in configs work')
