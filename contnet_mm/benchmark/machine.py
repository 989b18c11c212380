"""What a timing depends on: the hardware and the versions."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import torch
from mmengine.utils.dl_utils import collect_env

from contnet_mm.version import __version__

ROOT = Path(__file__).parents[2]
# Instructions that make small floating-point types fast.
FLAGS = ('avx2', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_bf16', 'amx_tile')
# Of MMEngine's facts: paths, and what no timing depends on.
LEFT_OUT = ('CUDA_HOME', 'PyTorch compiling details', 'numpy_random_seed', 'OpenCV')


def describe_machine(device: str) -> dict[str, str]:
    """Describe hardware and software, without the name of the machine and its folders."""
    commit = _output('git', '-C', str(ROOT), 'describe', '--always', '--dirty', '--exclude=*')
    path = Path('/proc/cpuinfo')
    text = path.read_text() if path.is_file() else ''
    cpu = dict(re.findall(r'^(model name|flags)\s*: (.*)$', text, re.MULTILINE))
    flags = cpu.get('flags', '').split()
    facts = {
        'contnet_mm': __version__,
        'commit': commit if (ROOT / '.git').exists() else None,
        'device': device,
        'CPU': cpu.get('model name') or platform.processor(),
        'CPU cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else None,
        'CPU flags': ' '.join(flag for flag in FLAGS if flag in flags),
        'CPU capability': torch.backends.cpu.get_cpu_capability(),
        'threads': torch.get_num_threads(),
        'CUDA': torch.version.cuda,
        'cuDNN': torch.backends.cudnn.version(),
    }
    if device == 'cuda':
        query = ('--query-gpu=driver_version', '--format=csv,noheader', '--id=0')
        facts['GPU driver'] = _output('nvidia-smi', *query)
    facts |= {x.name: x.version for x in distributions() if x.name in ('timm', 'numpy')}
    facts |= {name: value for name, value in collect_env().items() if name not in LEFT_OUT}
    return {name: str(value) for name, value in facts.items() if value not in (None, '')}


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None
