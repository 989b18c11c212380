"""Checks of the OpenMMLab libraries, of mim, and of ConTNet in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .commands import (
    OPENMMLAB,
    build_mmcv,
    install_library,
    install_transitional,
    pip,
    reinstall,
    stack_of,
    tried,
    uninstall,
)
from .diagnosis import Diagnosis, parse
from .facts import LIBRARIES, WATCHED, Facts

TITLES = {'onedl': 'maintained fork', 'openmmlab': 'original OpenMMLab'}
# What has to work before a library can.
BASE = ('Python', 'setuptools', 'torch', 'torchvision', 'numpy', 'opencv')
NEEDED = (*BASE, 'stack', 'mmengine', 'mmcv', 'mmcv ops', 'contnet_mm')


def check_stack(facts: Facts) -> Iterator[Diagnosis]:
    """Check that the libraries come from one set of distributions."""
    singles = {m: facts.owners(m)[0] for m in OPENMMLAB if len(facts.owners(m)) == 1}
    stack = stack_of(facts)
    strangers = {
        module: dist.name
        for module, dist in singles.items()
        if dist.name.startswith('onedl-') != (stack == 'onedl')
    }
    if strangers:
        text = f'most is from the {TITLES[stack]}, but not {", ".join(strangers.values())}'
        steps = [uninstall(facts, *strangers.values())]
        others = [module for module in strangers if module != 'mmcv']
        steps += [reinstall(facts, *tried(facts, *others))] if others else []
        steps += [build_mmcv(facts)] if 'mmcv' in strangers else []
        yield Diagnosis('problem', 'stack', text, ' && '.join(steps))
    elif singles:
        yield Diagnosis('ok', 'stack', TITLES[stack])


def check_owners(facts: Facts) -> Iterator[Diagnosis]:
    """Check that each library is there and that one distribution brought it."""
    for module in ('mmengine', 'mmcv', *LIBRARIES):
        owners = facts.owners(module)
        names = [f'{dist.name} {dist.version}' for dist in owners]
        fix = install_library(facts, module)
        if len(owners) > 1:
            fix = f'{uninstall(facts, *(dist.name for dist in owners))} && {fix}'
            text = f'two distributions overwrote each other: {" and ".join(names)}'
            yield Diagnosis('problem', module, text, fix)
        elif owners and not facts.origins.get(module):
            text = f'{names[0]} is recorded, but its files are gone'
            yield Diagnosis('problem', module, text, fix)
        elif owners:
            where = f', in place from {owners[0].editable}' if owners[0].editable else ''
            yield Diagnosis('ok', module, names[0] + where)
        elif facts.origins.get(module):
            folder = Path(facts.origins[module]).parents[1]
            text = f'comes from {folder}, but is not installed: mim does not see it'
            fix = pip(facts, 'install', '--no-deps', '--no-build-isolation', '-e', str(folder))
            yield Diagnosis('warning', module, text, fix)
        else:
            status = 'problem' if _is_needed(facts, module) else 'note'
            yield Diagnosis(status, module, 'is missing', fix)


def _is_needed(facts: Facts, module: str) -> bool:
    some = facts.needed or any(facts.origins.get(library) for library in LIBRARIES)
    return module == 'mmengine' or module in facts.needed or (module == 'mmcv' and bool(some))


def check_contnet_mm(facts: Facts) -> Iterator[Diagnosis]:
    """Say where contnet_mm comes from."""
    owners, origin = facts.owners('contnet_mm'), facts.origins.get('contnet_mm')
    checkout = Path(facts.tools).parent
    fix, hint = pip(facts, 'install', '--no-deps', '-e', str(checkout)), ''
    if not (checkout / 'setup.py').is_file():  # nobody publishes it under its name alone
        fix = f'{pip(facts, "install", "--no-deps")} contnet_mm-*.whl'
        hint = '; run the command in the folder of its wheel'
    if owners and origin:
        where = f'from the checkout {owners[0].editable}' if owners[0].editable else 'from a wheel'
        yield Diagnosis('ok', 'contnet_mm', f'{owners[0].version} {where}')
    elif origin:
        text = f'comes from {Path(origin).parents[1]}, but is not installed: mim does not see it'
        yield Diagnosis('warning', 'contnet_mm', text + hint, fix)
    else:
        yield Diagnosis('problem', 'contnet_mm', f'is not installed{hint}', fix)


def check_ranges(facts: Facts) -> Iterator[Diagnosis]:
    """Check the versions of mmcv and mmengine that a library asserts when it is imported."""
    for library, ranges in facts.ranges.items():
        for module, (lowest, above) in ranges.items():
            version = facts.version(module)
            if version and not parse(lowest) <= parse(version) < parse(above):
                text = f'{facts.version(library)} refuses {module} {version}: it wants '
                text += f'>={lowest},<{above}'
                fix = build_mmcv(facts) if module == 'mmcv' else ''
                fix = fix or reinstall(facts, *tried(facts, module))
                yield Diagnosis('problem', library, text, fix, ('stack', module))


def check_imports(facts: Facts) -> Iterator[Diagnosis]:
    """Check that mmengine and mmcv import."""
    for module in ('mmengine', 'mmcv'):
        error = facts.probes.get(module, {}).get('import')
        if error:
            causes = (*BASE, 'stack', 'mmengine', module)
            fix = _fix_import(facts, module, str(error))
            yield Diagnosis('problem', module, f'does not import: {error}', fix, causes)


def _fix_import(facts: Facts, module: str, error: str) -> str:
    """Install what an import misses; the library itself again if it is nothing of others'."""
    missing = re.search(r"No module named '(\w+)", error)
    if missing and missing[1] not in WATCHED:
        return pip(facts, 'install', missing[1])
    return install_library(facts, module)


def check_ops(facts: Facts) -> Iterator[Diagnosis]:
    """Check that mmcv has its compiled ops and that one works, on the CPU and on the GPU."""
    said = facts.probes.get('mmcv')
    if said is None or said.get('import'):
        return
    owners = facts.owners('mmcv')
    fix = build_mmcv(facts)
    if owners and owners[0].name.endswith('-lite'):
        fix = f'{uninstall(facts, owners[0].name)} && {fix}'
    causes = (*BASE, 'stack', 'mmengine', 'mmcv')
    if said.get('extension'):
        text = f'are missing, or built for another torch: {said["extension"]}'
        yield Diagnosis('problem', 'mmcv ops', text, fix, causes)
    elif said.get('cpu'):
        yield Diagnosis('problem', 'mmcv ops', f'fail: {said["cpu"]}', fix, causes)
    elif said.get('cuda'):
        cuda = facts.probes['torch']['cuda']
        text = f'do not run on the GPU (to build them takes an nvcc of CUDA {cuda}): {said["cuda"]}'
        yield Diagnosis('problem', 'mmcv ops', text, fix, (*causes, 'GPU'))
    else:
        where = 'CPU and GPU' if facts.probes['torch'].get('gpus') else 'CPU'
        yield Diagnosis('ok', 'mmcv ops', f'load and compute (nms on {where})')


def check_checkpoints(facts: Facts) -> Iterator[Diagnosis]:
    """Check that mmengine can load what it saved, which torch 2.6 took from older ones."""
    said = facts.probes.get('mmengine', {})
    if said.get('reload'):
        version, torch = facts.version('mmengine'), facts.version('torch')
        text = f'mmengine {version} cannot load its own ones beside torch {torch}, so that '
        text += '--resume and test fail. The command switches a protection off: load no files of '
        text += f'strangers while it is set ({said["reload"]})'
        fix = 'export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1'
        yield Diagnosis('problem', 'checkpoints', text, fix, (*BASE, 'stack', 'mmengine'))
    elif said and not said.get('import'):
        yield Diagnosis('ok', 'checkpoints', 'mmengine loads what it saves')
    if said.get('resolve'):
        text = f'does not find contnet_mm.ConTNet: {said["resolve"]}'
        fix = install_library(facts, 'mmengine')
        yield Diagnosis('problem', 'mmengine', text, fix, (*BASE, 'contnet_mm', 'mmengine'))


def check_mim(facts: Facts) -> Iterator[Diagnosis]:
    """Check that the shell's ``mim`` is the one of this environment."""
    if not facts.origins.get('mim'):
        fix = install_library(facts, 'mim')
        yield Diagnosis(
            'warning', 'mim', 'is missing; commands here start with it', fix, ('stack',)
        )
    elif Path(facts.mim).parent.resolve() != Path(facts.scripts).resolve():
        said = f'runs {facts.mim}' if facts.mim else 'finds none'
        fix = f'export PATH={facts.scripts}:$PATH'
        yield Diagnosis('warning', 'mim', f'the shell {said}, not the one of {facts.prefix}', fix)
    else:
        yield Diagnosis('ok', 'mim', facts.mim)


def check_libraries(facts: Facts) -> Iterator[Diagnosis]:
    """Check ConTNet in each library, its configs as parents, and ``mim train``."""
    for library in LIBRARIES:
        said = facts.probes.get(library)
        if said is None:
            continue
        causes = (*NEEDED, library)
        error = said.get('import') or said.get('resolve')
        if error:
            text = f'does not find contnet_mm.ConTNet: {error}'
            fix = _fix_import(facts, library, str(error))
            yield Diagnosis('problem', library, text, fix, causes)
        else:
            yield Diagnosis('ok', library, 'finds contnet_mm.ConTNet')
        again = install_transitional(facts, library) or install_library(facts, library)
        if said.get('base'):
            text = f'configs of it cannot be parents: {said["base"]}'
            yield Diagnosis('problem', f'{library}::', text, again, causes)
        if said.get('mim'):
            text = f'does not work: {said["mim"]}'
            yield Diagnosis('problem', f'mim train {library}', text, again, causes)
        if not (error or said.get('base') or said.get('mim')):
            text = f'and {library}:: in configs work'
            yield Diagnosis('ok', f'mim train {library}', text)
