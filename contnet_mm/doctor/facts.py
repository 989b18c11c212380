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

# One for each task; the user says which are needed.
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
# In the order in which they depend on one another.
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
    mim: str = ''  # what the shell runs as `mim`
    scripts: str = ''  # folder of this environment's commands
    has_gpu: bool = False  # an NVIDIA GPU on the bus, whatever the driver says of it
    tools: str = ''  # folder of contnet_mm's tools
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

    def has(self, module: str) -> bool:
        """Return whether a module is there, whoever brought it."""
        return bool(self.origins.get(module))

    def answers(self, module: str) -> Mapping[str, object]:
        """Return what the probe of a module says, nothing where it did not run."""
        return self.probes.get(module, {})


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
        mim=shutil.which('mim') or '',
        scripts=sysconfig.get_path('scripts'),
        has_gpu=has_gpu(),
        tools=str(tools),
        needed=tuple(needed),
        probes=run_probes(origins),
    )


def read_distributions(found: Iterable[metadata.Distribution]) -> tuple[Distribution, ...]:
    """Read which distributions are there and which modules they brought.

    A module belongs to whoever brought its ``__init__.py``: our transitional distributions carry
    the names of libraries, and one puts a file beside a library's, but they own nothing.
    """
    distributions: dict[str, Distribution] = {}
    for dist in found:
        name = re.sub(r'[-_.]+', '-', dist.metadata['Name'] or '').lower()
        folder = _editable_folder(dist)
        places = [Path(folder), Path(folder, 'src')] if folder else []
        record = dist.read_text('RECORD') or dist.read_text('SOURCES.txt') or ''
        recorded = re.findall(r'^(\w+)/__init__\.py(?:,|$)', record, re.MULTILINE)
        owns = (
            module
            for module in WATCHED
            if module in recorded or any((p / module / '__init__.py').is_file() for p in places)
        )
        # The first of a name on the path is the one that counts.
        distributions.setdefault(name, Distribution(name, dist.version or '0', tuple(owns), folder))
    distributions.pop('', None)  # what is broken has no name
    return tuple(distributions.values())


def _editable_folder(dist: metadata.Distribution) -> str:
    try:
        url = json.loads(dist.read_text('direct_url.json') or '{}')
    except ValueError:
        return ''
    editable = url.get('dir_info', {}).get('editable')
    return unquote(urlparse(url.get('url', '')).path) if editable else ''


def origin(module: str) -> str:
    """Return the file that would be imported under this name, or nothing."""
    try:
        spec = util.find_spec(module)
    except (ImportError, ValueError):
        return ''
    # A folder without __init__.py counts as a package without origin: what an uninstall left.
    return (spec.origin or '') if spec else ''


def python_command() -> str:
    """Return the shortest word by which a shell finds the running Python."""
    found = shutil.which('python')
    same = found and os.path.dirname(found) == os.path.dirname(sys.executable)
    return 'python' if same else shlex.quote(sys.executable)


def has_gpu(devices: Path = Path('/sys/bus/pci/devices')) -> bool:
    """Return whether a display controller of NVIDIA is on the bus."""
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

    All but OpenCV need torch, and are left out where it does not import.
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
    if result.stdout:
        return json.loads(result.stdout)
    if result.returncode < 0:
        return {'import': f'crashes (signal {-result.returncode})'}
    lines = result.stderr.strip().splitlines() or [f'ended with status {result.returncode}']
    return {'import': lines[-1]}
