"""The versions that were tried together, and the commands that install them."""

from __future__ import annotations

import shlex
from pathlib import Path

from .facts import Facts

# By import name, the distribution and its version in either stack.
TRIED = {
    'onedl': {
        'torch': ('torch', '2.11.0'),
        'torchvision': ('torchvision', '0.26.0'),
        'mmengine': ('onedl-mmengine', '0.10.12'),
        'mmcv': ('onedl-mmcv', '2.3.6'),
        'mmdet': ('onedl-mmdetection', '3.5.1'),
        'mmseg': ('onedl-mmsegmentation', '1.4.2'),
        'mmpretrain': ('onedl-mmpretrain', '1.3.6'),
        'mim': ('onedl-mim', '0.5.1'),
    },
    'openmmlab': {
        'torch': ('torch', '2.1.2'),
        'torchvision': ('torchvision', '0.16.2'),
        'mmengine': ('mmengine', '0.10.7'),
        'mmcv': ('mmcv', '2.1.0'),
        'mmdet': ('mmdet', '3.3.0'),
        'mmseg': ('mmsegmentation', '1.2.2'),
        'mmpretrain': ('mmpretrain', '1.2.0'),
        'mim': ('openmim', '0.3.9'),
    },
}
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mim')
SETUPTOOLS = {'onedl': 'setuptools>=80,<82', 'openmmlab': 'setuptools<70'}
# The fork's libraries under the names of the originals; see tools/transitional/README.md.
TRANSITIONAL = {'mmdet': 'mmdet', 'mmseg': 'mmsegmentation'}


def stack_of(facts: Facts) -> str:
    """Return the stack to which most of the libraries belong, the fork where it is a draw."""
    owners = [facts.owners(module) for module in OPENMMLAB]
    forked = [dists[0].name.startswith('onedl-') for dists in owners if len(dists) == 1]
    return 'openmmlab' if forked.count(False) > forked.count(True) else 'onedl'


def pip(facts: Facts, *words: str) -> str:
    """Return a command of this environment's pip."""
    return f'{facts.command} -m pip {shlex.join(words)}'


def uninstall(facts: Facts, *names: str) -> str:
    """Return the command that removes distributions."""
    return pip(facts, 'uninstall', '-y', *names)


def reinstall(facts: Facts, *wanted: str) -> str:
    """Return the command that puts files in place, whatever is there, and nothing else's."""
    return pip(facts, 'install', '--force-reinstall', '--no-deps', *wanted)


def tried(facts: Facts, *modules: str, stack: str = '') -> list[str]:
    """Return requirements with the versions that were tried in this stack, or in another."""
    return ['=='.join(TRIED[stack or stack_of(facts)][module]) for module in modules]


def install_library(facts: Facts, module: str) -> str:
    """Return the command that installs one of OPENMMLAB, in its present version if it has one."""
    owners = facts.owners(module)
    wanted = tried(facts, module)
    if module == 'mmcv':
        return build_mmcv(facts)
    if not owners:
        return pip(facts, 'install', *wanted)
    if len(owners) == 1:
        wanted = [f'{owners[0].name}=={owners[0].version}']
    return reinstall(facts, *wanted)


def build_mmcv(facts: Facts) -> str:
    """Return the command that builds mmcv with its ops, for the GPU if there is one."""
    cuda = 'FORCE_CUDA=1 ' if facts.probes.get('torch', {}).get('gpus') else ''
    tools = pip(facts, 'install', SETUPTOOLS[stack_of(facts)], 'wheel', 'ninja', 'psutil')
    options = ('--no-build-isolation', '--no-cache-dir')  # isolated, it leaves its ops out
    # What mmcv needs is there wherever mmcv was.
    command = reinstall(facts) if facts.owners('mmcv') else pip(facts, 'install')
    build = f'{command} {shlex.join((*options, *tried(facts, "mmcv")))}'
    return f'{tools} && MMCV_WITH_OPS=1 {cuda}{build}'


def install_transitional(facts: Facts, module: str) -> str:
    """Return the command that adds the original name of a forked library.

    Nothing if it is there, the stack needs none, or the folder to install from is not here.
    """
    name = TRANSITIONAL.get(module, '')
    folder = Path(facts.tools, 'transitional', name)
    forked = any(dist.name.startswith('onedl-') for dist in facts.owners(module))
    if not (name and forked and facts.get(name) is None and folder.is_dir()):
        return ''
    return pip(facts, 'install', '--no-deps', str(folder))
