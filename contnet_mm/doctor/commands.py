"""The versions that were tried together, and the commands that install them."""

from __future__ import annotations

import shlex
from pathlib import Path

from .facts import Facts

STACKS = ('onedl', 'openmmlab')
# By import name, the requirement in each of the stacks. The versions are those that requirements/
# pins, which a wheel does not carry.
TRIED = {
    'torch': ('torch==2.11.0', 'torch==2.1.2'),
    'torchvision': ('torchvision==0.26.0', 'torchvision==0.16.2'),
    'mmengine': ('onedl-mmengine==0.10.12', 'mmengine==0.10.7'),
    'mmcv': ('onedl-mmcv==2.3.6', 'mmcv==2.1.0'),
    'mmdet': ('onedl-mmdetection==3.5.1', 'mmdet==3.3.0'),
    'mmseg': ('onedl-mmsegmentation==1.4.2', 'mmsegmentation==1.2.2'),
    'mmpretrain': ('onedl-mmpretrain==1.3.6', 'mmpretrain==1.2.0'),
    'mim': ('onedl-mim==0.5.1', 'openmim==0.3.9'),
    'pkg_resources': ('setuptools>=80,<82', 'setuptools<70'),
}
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mim')
# The fork's libraries under the names of the originals; see tools/transitional/README.md.
TRANSITIONAL = {'mmdet': 'mmdet', 'mmseg': 'mmsegmentation'}


def stack_of(facts: Facts) -> str:
    """Return the stack to which most of the libraries belong, the fork where it is a draw."""
    owners = [facts.owners(module) for module in OPENMMLAB]
    forked = [dists[0].name.startswith('onedl-') for dists in owners if len(dists) == 1]
    return 'openmmlab' if forked.count(False) > forked.count(True) else 'onedl'


def tried(facts: Facts, *modules: str, stack: str = '') -> list[str]:
    """Return the requirements of modules in the stack of an environment, or in another."""
    column = STACKS.index(stack or stack_of(facts))
    return [TRIED[module][column] for module in modules]


def pip(facts: Facts, *words: str) -> str:
    """Return a command of this environment's pip."""
    return f'{facts.command} -m pip {shlex.join(words)}'


def uninstall(facts: Facts, *names: str) -> str:
    """Return the command that removes distributions."""
    return pip(facts, 'uninstall', '-y', *names)


def reinstall(facts: Facts, *wanted: str) -> str:
    """Return the command that installs distributions anew, without what they depend on."""
    return pip(facts, 'install', '--force-reinstall', '--no-deps', *wanted)


def install_library(facts: Facts, module: str) -> str:
    """Return the command that installs a library, in its present version if it has one."""
    owners, checkout = facts.owners(module), Path(facts.tools).parent
    if module == 'mmcv':
        return build_mmcv(facts)
    if module == 'contnet_mm' and (checkout / 'setup.py').is_file():
        return pip(facts, 'install', '--no-deps', '-e', str(checkout))
    if module == 'contnet_mm':  # nobody publishes it under its name alone
        return f'{pip(facts, "install", "--no-deps")} contnet_mm-*.whl  # where its wheel is'
    if len(owners) == 1:
        return reinstall(facts, f'{owners[0].name}=={owners[0].version}')
    wanted = tried(facts, module)
    return reinstall(facts, *wanted) if owners else pip(facts, 'install', *wanted)


def build_mmcv(facts: Facts) -> str:
    """Return the command that builds mmcv with its ops, for the GPU if there is one."""
    cuda = 'FORCE_CUDA=1 ' if facts.answers('torch').get('gpus') else ''
    setuptools, mmcv = tried(facts, 'pkg_resources', 'mmcv')
    tools = pip(facts, 'install', setuptools, 'wheel', 'ninja', 'psutil')
    options = ('--no-build-isolation', '--no-cache-dir')  # isolated, it leaves its ops out
    # What mmcv needs is there wherever mmcv was.
    command = reinstall(facts) if facts.owners('mmcv') else pip(facts, 'install')
    return f'{tools} && MMCV_WITH_OPS=1 {cuda}{command} {shlex.join((*options, mmcv))}'


def install_ops(facts: Facts) -> str:
    """Return the command that puts torchvision's operations into mmcv; nothing from elsewhere."""
    folder = Path(facts.tools, 'transitional', 'mmcv_ops')
    return pip(facts, 'install', '--no-deps', str(folder)) if folder.is_dir() else ''


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
