"""What a timing depends on: the hardware and the versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from contnet_mm.version import __version__

ROOT = Path(__file__).parents[2]
# What makes small floating-point types fast on CPUs.
FLAGS = ('avx2', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_bf16', 'amx_tile')
# mmengine comes from one of two distributions.
LIBRARIES = ('torch', 'torchvision', 'timm', 'triton', 'mmengine', 'onedl-mmengine', 'numpy')


def describe_hardware(device: str) -> dict[str, object]:
    """Describe what the networks ran on, without naming the machine."""
    info = _cpu_info()
    flags = info.get('flags', '').split()
    hardware: dict[str, object] = {
        'device': device,
        'CPU': info.get('model name', platform.processor() or platform.machine()),
        'CPU cores used': len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity')
        else os.cpu_count(),
        'CPU capability': torch.backends.cpu.get_cpu_capability(),
        'CPU flags': ' '.join(flag for flag in FLAGS if flag in flags) or 'not known',
        'threads': torch.get_num_threads(),
    }
    if device == 'cuda':
        hardware['GPU'] = torch.cuda.get_device_name()
        hardware['GPU driver'] = _output(
            'nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader', '--id=0'
        )
    return hardware


def describe_software() -> dict[str, object]:
    """Collect the versions of what takes part."""
    software: dict[str, object] = {'contnet_mm': __version__, 'commit': _commit()}
    software['Python'] = platform.python_version()
    for name in LIBRARIES:
        try:
            software[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        software['CUDA'] = torch.version.cuda
        software['cuDNN'] = str(torch.backends.cudnn.version())
    # Compiled networks are made by it on a CPU.
    software['g++'] = _output('g++', '-dumpfullversion')
    return {key: value for key, value in software.items() if value is not None}


def command_line(words: list[str]) -> str:
    """Give the command without the folder that it wrote to."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == '--out-dir':
            skip = True
        elif not word.startswith('--out-dir='):
            kept.append(word)
    return ' '.join(['python tools/benchmark.py', *kept])


def _cpu_info() -> dict[str, str]:
    try:
        lines = Path('/proc/cpuinfo').read_text().split('\n\n')[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(':') for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _commit() -> str | None:
    """Return the commit of the checkout, with a mark where something was changed since."""
    if not (ROOT / '.git').exists():
        return None
    commit = _output('git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD')
    changed = _output('git', '-C', str(ROOT), 'status', '--porcelain', '--untracked-files=no')
    return f'{commit} with changes' if commit and changed else commit


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() or None if result.returncode == 0 else None
