"""Facts about an environment, found without importing anything of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

from .probe import MARK

# What a task needs; which of them are wanted is the user's to say.
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
# In the order in which one needs another.
PROBED = ('torch', 'cv2', 'mmcv', 'mmengine', *LIBRARIES)
WATCHED = (*PROBED, 'torchvision', 'numpy', 'mim', 'pip', 'pkg_resources', 'contnet_mm')
PROBE_SECONDS = 300
PROBE = Path(__file__).with_name('probe.py')


class Distribution(NamedTuple):
    """What pip installed under one name."""

    name: str
    version: str
    owns: tuple[str, ...] = ()  # those of WATCHED whose __init__.py it brought
    editable: str = ''  # its folder, if it is installed in place


@dataclass(frozen=True)
class Facts:
    """All that the checks look at."""

    python: tuple[int, ...]
    command: str = 'python'  # how this Python is called in a shell
    prefix: str = ''
    distributions: tuple[Distribution, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)  # import name -> file
    ranges: Mapping[str, Mapping[str, tuple[str, str]]] = field(default_factory=dict)
    mim: str = ''  # what the shell runs as `mim`
    scripts: str = ''  # folder of this environment's commands
    has_gpu: bool = False  # an NVIDIA GPU on the bus, whatever the driver says of it
    tools: str = ''  # folder of contnet_mm's tools
    hint: str = ''  # command that looks at the environment of make setup, or builds it
    needed: tuple[str, ...] = ()  # those of LIBRARIES that the user wants
    probes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def get(self, name: str) -> Distribution | None:
        """Return a distribution by its name."""
        return next((dist for dist in self.distributions if dist.name == name), None)

    def owners(self, module: str) -> list[Distribution]:
        """Return the distributions that brought a module."""
        return [dist for dist in self.distributions if module in dist.owns]

    def version(self, module: str) -> str:
        """Return the version of a module's only owner, or nothing."""
        owners = self.owners(module)
        return owners[0].version if len(owners) == 1 else ''


def gather(tools: Path, needed: Iterable[str] = ()) -> Facts:
    """Look at the environment of the running Python.

    Args:
        tools: The folder of contnet_mm's tools.
        needed: Those of LIBRARIES whose absence is a problem.
    """
    origins = {name: origin(name) for name in WATCHED}
    return Facts(
        python=tuple(sys.version_info[:3]),
        command=python_command(),
        prefix=sys.prefix,
        distributions=read_distributions(metadata.distributions()),
        origins=origins,
        ranges={name: read_ranges(origins[name]) for name in LIBRARIES if origins[name]},
        mim=shutil.which('mim') or '',
        scripts=sysconfig.get_path('scripts'),
        has_gpu=has_gpu(),
        tools=str(tools),
        hint=find_hint(tools),
        needed=tuple(needed),
        probes=run_probes(origins),
    )


def normalise(name: str) -> str:
    """Return the one spelling of a distribution's name."""
    return re.sub(r'[-_.]+', '-', name).lower()


def read_distributions(found: Iterable[metadata.Distribution]) -> tuple[Distribution, ...]:
    """Read which distributions are there and which modules they brought.

    A module belongs to whoever brought its ``__init__.py``: our transitional distributions carry
    the names of libraries, and one puts a file beside a library's, but they own nothing.
    """
    distributions: dict[str, Distribution] = {}
    for dist in found:
        name = normalise(dist.metadata['Name'] or '')
        if not name or name in distributions:  # the first on the path is the one that counts
            continue
        folder = _editable_folder(dist)
        record = dist.read_text('RECORD') or dist.read_text('SOURCES.txt') or ''
        owns = set(re.findall(r'^(\w+)/__init__\.py(?:,|$)', record, re.MULTILINE))
        if folder:
            owns |= {
                module
                for module in WATCHED
                if any(Path(folder, part, module, '__init__.py').is_file() for part in ('', 'src'))
            }
        distributions[name] = Distribution(
            name, dist.version or '0', tuple(m for m in WATCHED if m in owns), folder
        )
    return tuple(distributions.values())


def _editable_folder(dist: metadata.Distribution) -> str:
    try:
        url = json.loads(dist.read_text('direct_url.json') or '{}')
    except ValueError:
        return ''
    if not url.get('dir_info', {}).get('editable'):
        return ''
    return unquote(urlparse(url.get('url', '')).path)


def origin(module: str) -> str:
    """Return the file that would be imported under this name, or nothing."""
    try:
        spec = util.find_spec(module)
    except (ImportError, ValueError):
        return ''
    # A folder without __init__.py counts as a package without origin: what an uninstall left.
    return (spec.origin or '') if spec else ''


def read_ranges(init: str) -> dict[str, tuple[str, str]]:
    """Read which versions of mmcv and mmengine a library asserts when it is imported.

    Args:
        init: Its ``__init__.py``.

    Returns:
        The lowest version and the first that is too new, by module; empty where none is asserted.
    """
    text = Path(init).read_text(encoding='utf-8', errors='replace')
    found = re.findall(r"^(mmcv|mmengine)_(min|max)\w*\s*=\s*['\"]([^'\"]+)", text, re.M | re.I)
    limits = {(module.lower(), end.lower()): version for module, end, version in found}
    return {
        module: (limits[module, 'min'], limits[module, 'max'])
        for module in ('mmcv', 'mmengine')
        if (module, 'min') in limits and (module, 'max') in limits
    }


def python_command() -> str:
    """Return the shortest word by which a shell finds the running Python."""
    found = shutil.which('python')
    same = found and os.path.dirname(found) == os.path.dirname(sys.executable)
    return 'python' if same else shlex.quote(sys.executable)


def find_hint(tools: Path) -> str:
    """Return a command for a Python that ``make setup`` did not build, if this is a checkout."""
    checkout = tools.parent
    folders = [checkout / name for name in ('.venv', '.venv-openmmlab')]
    if not (checkout / 'Makefile').is_file() or Path(sys.prefix) in folders:
        return ''
    for python in (folder / 'bin' / 'python' for folder in folders):
        if python.is_file():
            return shlex.join([str(python), str(tools / 'doctor.py')])
    return shlex.join(['make', '-C', str(checkout), 'setup'])


def has_gpu(devices: Path = Path('/sys/bus/pci/devices')) -> bool:
    """Tell whether a display controller of NVIDIA is on the bus."""
    for device in devices.glob('*'):
        try:
            kind = [(device / name).read_text().strip() for name in ('vendor', 'class')]
        except OSError:
            continue
        if kind[0] == '0x10de' and kind[1].startswith('0x03'):
            return True
    return False


def run_probes(origins: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Try every module that is there, each in a process of its own.

    Without a torch that imports nothing else of ours does, so that the rest is left out.
    """
    probes: dict[str, dict[str, object]] = {}
    for name in PROBED:
        torch_works = origins['torch'] and not probes.get('torch', {}).get('import')
        if origins[name] and (torch_works or name in ('torch', 'cv2')):
            probes[name] = run_probe(name)
    return probes


def run_probe(name: str) -> dict[str, object]:
    """Return what a probe says; a crash or a hang counts as a failing import."""
    # An empty folder: a checkout of a library in the current one would be imported instead.
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = subprocess.run(
                [sys.executable, str(PROBE), name],
                cwd=folder,
                capture_output=True,
                text=True,
                errors='replace',
                timeout=PROBE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return {'import': f'no answer within {PROBE_SECONDS} s'}
    for line in result.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line[len(MARK) :])
    if result.returncode < 0:
        return {'import': f'crashes (signal {-result.returncode})'}
    lines = result.stderr.strip().splitlines() or [f'ended with status {result.returncode}']
    return {'import': lines[-1]}
