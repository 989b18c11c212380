"""Whose operations mmcv has here, and torchvision's for one that has none."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

from contnet_mm.apis.config import resources

COMPILED, TORCHVISION = 'mmcv', 'torchvision'


def find_ops() -> str | None:
    """Return whose operations mmcv has: ``'mmcv'`` (compiled), ``'torchvision'`` or None.

    Raises:
        ValueError: If mmcv is not installed.
    """
    if find_spec('mmcv') is None:
        raise ValueError(
            'mmcv is not installed; install it first, without its operations if need be'
        )
    spec = find_spec('mmcv._ext')
    if spec is None:
        return None
    return TORCHVISION if str(spec.origin).endswith('.py') else COMPILED


def install_ops() -> str:
    """Install torchvision's operations into mmcv, unless it has some.

    Returns:
        A line about what was done.

    Raises:
        ValueError: If mmcv is missing or has compiled operations, or if pip fails.
    """
    found = find_ops()
    if found == COMPILED:
        raise ValueError(
            f'mmcv has compiled operations, {find_spec("mmcv._ext").origin}: those are better. If '
            'they do not load, they were built for another torch: reinstall mmcv'
        )
    if found == TORCHVISION:
        return "mmcv has torchvision's operations already"
    folder = resources() / 'tools' / 'transitional' / 'mmcv_ops'
    command = [sys.executable, '-m', 'pip', 'install', '--no-deps', str(folder)]
    if subprocess.run(command).returncode:
        raise ValueError(f'pip failed, see above: {" ".join(command)}')
    return "mmcv has torchvision's operations now"
