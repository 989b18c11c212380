"""Peak memory of one cell on the CPU, in a process of its own, since a process's peak only grows.

Run as ``python -m contnet_mm.benchmark.memory`` by the benchmark.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch

from contnet_mm.benchmark.measure import MEGABYTE, Step, forget_compiled, reason_of
from contnet_mm.benchmark.networks import Setting
from contnet_mm.benchmark.plan import Cell, Size

ROOT = Path(__file__).parents[2]
# From this size on memory comes from the system and goes back to it, so that what is resident is
# what is used. By itself the C library raises the bound up to 32 MB and keeps what is below.
ENVIRONMENT = {'MALLOC_MMAP_THRESHOLD_': '65536'}


def peak_in_subprocess(cell: Cell, setting: Setting, size: Size, pass_name: str) -> float:
    """Tell how many MB one iteration takes on the CPU beyond weights and images.

    Raises:
        RuntimeError: If it cannot be told; the message says why.
    """
    task = dict(
        cell=asdict(cell),
        setting=asdict(setting),
        size=asdict(size),
        pass_name=pass_name,
        threads=torch.get_num_threads(),
    )
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    result = subprocess.run(
        [sys.executable, '-m', 'contnet_mm.benchmark.memory'],
        input=json.dumps(task),
        cwd=ROOT,  # which -m looks in first
        env={**os.environ, **ENVIRONMENT, 'PYTHONPATH': os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    lines = result.stdout.splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise RuntimeError(f'its process ended with status {result.returncode}') from None
    if 'error' in answer:
        raise RuntimeError(answer['error'])
    return answer['mb']


def measure_peak(step: Step) -> float:
    """Tell how many MB an iteration takes in this process, beyond what is there before it.

    The iteration before that compiles and fills caches.

    Raises:
        OSError: If the system does not tell.
    """
    forget_compiled(raise_limit=True)
    step.first()
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # forgets the peak so far
    before = _status('VmRSS')
    step()
    return (_status('VmHWM') - before) / MEGABYTE


def _status(name: str) -> int:
    """Return a value of this process in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{name}:'):
            return int(line.split()[1]) * 1024
    raise OSError(f'the system does not tell {name}')


def main() -> None:
    """Read a task from standard input, measure, and answer on standard output."""
    task = json.load(sys.stdin)
    try:
        torch.set_num_threads(task['threads'])
        step = Step(
            Cell(**task['cell']),
            Setting(**task['setting']),
            Size(**task['size']),
            task['pass_name'],
            'cpu',
        )
        answer = dict(mb=measure_peak(step))
    except Exception as error:  # whatever the network or the compiler raises is the answer
        answer = dict(error=reason_of(error))
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
