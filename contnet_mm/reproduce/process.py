"""Run a library's command, with its output in a file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

FULL_DISK = 1 << 16  # bytes that are left
ERROR = re.compile(r'(?:\[rank\d+\]: )?([A-Za-z_][\w.]*(?:Error|Exception|Interrupt)(?::|$).*)')
# By these launchers say that what they have started has failed.
OF_LAUNCHERS = ('CalledProcessError', 'ChildFailedError')


class CommandError(RuntimeError):
    """A command that has failed."""


def run_command(
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str] | None = None,
    keep_open: Sequence[int] = (),
) -> float:
    """Run a command to its end.

    Args:
        command: Program and arguments.
        log: Gets all that it prints, after what is there already.
        env: Added to the environment.
        keep_open: File descriptors that the process inherits.

    Returns:
        How long it took, in seconds.

    Raises:
        CommandError: If it fails; the message starts with the reason, as far as the log has one.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with log.open('ab') as out:
        process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            pass_fds=keep_open,
        )
    if process.returncode:
        # On a full disk the log lacks the reason too.
        is_full = shutil.disk_usage(log.parent).free < FULL_DISK
        reason = 'No space left on device' if is_full else read_reason(log)
        raise CommandError(
            f'{reason} (status {process.returncode} of {" ".join(command)}; see {log})'
        )
    return time.monotonic() - begin


def read_reason(log: Path) -> str:
    """Return the line of a log that says best why a command has failed.

    That is the last error of Python that is not a launcher's; without one the last line.
    """
    lines = [line.strip() for line in _read_tail(log).splitlines() if line.strip()]
    errors = [match[1] for match in map(ERROR.match, lines) if match]
    errors = [error for error in errors if not any(name in error for name in OF_LAUNCHERS)]
    return (errors or lines or ['no output'])[-1]


def _read_tail(log: Path, size: int = 20_000) -> str:
    with log.open('rb') as file:
        file.seek(max(log.stat().st_size - size, 0))
        return file.read().decode(errors='replace')
