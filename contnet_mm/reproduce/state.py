"""What a row with one seed has come to, kept in a folder of its own that survives any kill."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from contnet_mm.utils.files import write_file

STATE = 'state.json'


def compute_fingerprint(facts: Mapping[str, object]) -> str:
    """Return a hash of plain values, such as a config as a dict, in hexadecimal digits."""
    text = json.dumps(facts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def lock_folder(path: Path) -> Iterator[int]:
    """Let one process at a time work in a folder, which is made where it is missing.

    Yields:
        A file descriptor. A child process that inherits it keeps the lock, so that a training that
        outlives a killed parent is waited for, not started a second time beside it.
    """
    path.mkdir(parents=True, exist_ok=True)
    file = os.open(path / 'lock', os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'another process is at work in {path}; waiting for it', flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


class RowFolder:
    """The folder of a row and a seed.

    Its name holds a fingerprint of config, options and version, so that a result of other ones
    never passes for this one's.

    Args:
        work_dir: The folder of all rows.
        name: Of the row.
        seed: Of its training.
        fingerprint: As :func:`compute_fingerprint` returns it.
    """

    def __init__(self, work_dir: Path, name: str, seed: int, fingerprint: str) -> None:
        self.path = work_dir / f'{name}_seed{seed}_{fingerprint[:8]}'
        self.train_dir, self.test_dir = self.path / 'train', self.path / 'test'

    def read(self) -> dict[str, dict]:
        """Return the stages that are finished, each with its facts."""
        path = self.path / STATE
        return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}

    def finish(self, stage: str, facts: Mapping[str, object]) -> None:
        """Note that a stage is finished."""
        state = {**self.read(), stage: facts}
        write_file(self.path / STATE, json.dumps(state, indent=2) + '\n')

    def find_checkpoint(self) -> Path | None:
        """Return the last checkpoint, from which ``--resume`` goes on; None if there is none.

        ``contnet_mm.CheckpointHook`` writes a checkpoint whole, and notes its name after that.
        """
        record = self.train_dir / 'last_checkpoint'
        if not record.exists():
            return None
        path = self.train_dir / Path(record.read_text(encoding='utf-8')).name
        return path if path.is_file() else None


def remove_metrics(test_dir: Path) -> None:
    """Remove what earlier tests have left in a folder, so that none is taken for the next one.

    Their names are times, by which a clock that was set back orders them wrongly.
    """
    shutil.rmtree(test_dir, ignore_errors=True)


def read_metrics(test_dir: Path) -> dict[str, float]:
    """Return what the last test in a folder has logged.

    Raises:
        ValueError: If no test has come to its end there.
    """
    paths = sorted(test_dir.glob('*/*.json'), key=lambda path: path.parent.name)
    if not paths:
        raise ValueError(f'{test_dir} holds no metrics of a test')
    return json.loads(paths[-1].read_text(encoding='utf-8'))
