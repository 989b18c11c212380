"""Run the stages of all rows and seeds, one after the other on each share of the GPUs."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from mmengine.config import Config

from contnet_mm.apis.config import datasets_of, read_config, resources
from contnet_mm.apis.mmcv_ops import refuse_missing_operations
from contnet_mm.apis.training_log import read_training_log
from contnet_mm.reproduce.gates import ask, check_baseline, check_weights
from contnet_mm.reproduce.launch import (
    Cluster,
    Launch,
    list_options,
    make_test_command,
    plan_launch,
)
from contnet_mm.reproduce.process import CommandError, run_command
from contnet_mm.reproduce.rows import Row, convert_metrics, read_rows
from contnet_mm.reproduce.state import (
    RowFolder,
    compute_fingerprint,
    lock_folder,
    read_metrics,
    remove_metrics,
)
from contnet_mm.utils.files import compute_sha256, write_file
from contnet_mm.version import __version__

STAGES = ('check', 'baseline', 'train', 'test', 'summary')
ZOO = 'zoo'  # folder of the baselines


@dataclass(frozen=True)
class Trial:
    """A row with one seed.

    Attributes:
        row: The row.
        seed: Of the training.
        config: What its config says, with the options.
        options: Settings that training and test are given.
        launch: How it is trained.
        folder: What it has come to.
        fingerprint: Of all that decides its result.
    """

    row: Row
    seed: int
    config: Config
    options: Mapping[str, object]
    launch: Launch
    folder: RowFolder
    fingerprint: str

    @property
    def title(self) -> str:
        """What to call it in a line of output."""
        return f'{self.row.name}, seed {self.seed}'

    def train_command(self, resume: bool = False, port: int | None = None) -> list[str]:
        """Return the command that trains it."""
        options = {'randomness.seed': self.seed, **self.options}
        return self.launch.train_command(self.folder.train_dir, options, resume, port)

    def test_command(self, checkpoint: str | Path, port: int | None = None) -> list[str]:
        """Return the command that tests a checkpoint of it."""
        return make_test_command(
            self.launch.config,
            self.launch.library,
            self.launch.cluster,
            checkpoint,
            self.folder.test_dir,
            self.options,
            port,
        )


def make_trials(
    rows: Iterable[Row],
    seeds: Sequence[int],
    cluster: Cluster,
    work_dir: Path,
    options: Mapping[str, object] | None = None,
    root: Path | None = None,
) -> list[Trial]:
    """Plan the trainings of rows.

    Args:
        rows: The rows.
        seeds: Of the trainings of each.
        cluster: What trains one of them.
        work_dir: Folder of all.
        options: Settings for training and test, by key of the config. Those of the backbone go to
            rows whose backbone is ConTNet alone.
        root: The folder above ``configs``.

    Raises:
        ValueError: If a config cannot be read with these options, or none trained on this cluster.
    """
    root, trials = root or resources(), []
    refused: list[str] = []
    for row in rows:
        path = root / row.config
        config = read_config(path, import_custom_modules=False)
        taken = _choose_options(config, options or {})
        config.merge_from_dict(taken)
        name = row.config if Path(row.config).is_file() else str(path)
        try:
            launch = plan_launch(name, config, cluster)
        except ValueError as error:
            refused.append(f'left out: {error}')
            continue
        facts = dict(config=config.to_dict(), batch=launch.batch, lr=launch.lr, version=__version__)
        fingerprint = compute_fingerprint(facts)
        for seed in seeds:
            folder = RowFolder(work_dir, row.name, seed, fingerprint)
            trials.append(Trial(row, seed, config, taken, launch, folder, fingerprint))
    if not trials:
        raise ValueError('; '.join(refused) or 'no row was given')
    for line in refused:
        print(line, flush=True)
    return trials


def _choose_options(config: Config, options: Mapping[str, object]) -> dict[str, object]:
    """Return the options for a config: a baseline's backbone does not get those of ConTNet."""
    is_ours = config.model.get('backbone', {}).get('type') == 'contnet_mm.ConTNet'
    return {
        key: value
        for key, value in options.items()
        if is_ours or not f'{key}.'.startswith('model.backbone.')
    }


def run_trials(
    trials: Sequence[Trial],
    stages: Sequence[str],
    num_parallel: int,
    work_dir: Path,
    root: Path | None = None,
) -> dict[str, dict]:
    """Run stages of trials; one that fails does not stop the others.

    Args:
        trials: As :func:`make_trials` returns them.
        stages: Some of ``STAGES``.
        num_parallel: How many run side by side, each on its own GPUs.
        work_dir: Folder of all.
        root: The folder above ``configs``.

    Returns:
        What went wrong, by fingerprint and seed (``errors``), and the metrics of the baselines
        (``baselines``).
    """
    errors: dict[str, str] = {}
    gates = Gates(work_dir, root)
    for trial in trials:
        try:
            if 'check' in stages:
                gates.check(trial)
            if 'baseline' in stages:
                gates.check_baselines(trial)
        except (OSError, ValueError) as error:
            errors[trial.folder.path.name] = str(error)
            print(f'{trial.title}: {error}', flush=True)
    shares: SimpleQueue = SimpleQueue()
    for i in range(num_parallel):
        shares.put(i)

    def work(trial: Trial) -> None:
        share = shares.get()
        try:
            run_trial(trial, stages, share if num_parallel > 1 else None)
        except (CommandError, OSError, ValueError) as error:
            errors[trial.folder.path.name] = str(error)
            print(f'{trial.title} failed: {error}', flush=True)
        finally:
            shares.put(share)

    passed = [trial for trial in trials if trial.folder.path.name not in errors]
    with ThreadPoolExecutor(num_parallel) as pool:
        for _ in pool.map(work, passed):
            pass
    return dict(errors=errors, baselines=gates.baselines)


class Gates:
    """Checks before trainings; what several rows share is checked once.

    Args:
        work_dir: Folder of all rows.
        root: The folder above ``configs``.
    """

    def __init__(self, work_dir: Path, root: Path | None) -> None:
        self.work_dir, self.root = work_dir, root
        self.baselines: dict[str, dict[str, float]] = {}
        self._outcomes: dict[object, Exception | None] = {}

    def check(self, trial: Trial) -> None:
        """Ask the doctor, and check operations of mmcv, data and weights of a row.

        Raises:
            ValueError: For the first that fails.
        """
        library, config = trial.launch.library, trial.config
        logs = self.work_dir / 'check'
        log = logs / f'doctor_{library}.log'
        self._once(('doctor', library), ask, log, 'doctor', '--need', library)
        refuse_missing_operations(trial.launch.config)
        data = compute_fingerprint(
            {split: datasets_of(config, split) for split in ('train', 'val')}
        )
        log = logs / f'data_{data[:8]}.log'
        words = ['check_dataset', '--config', trial.launch.config, *list_options(trial.options)]
        self._once(('data', data), ask, log, *words)
        weights = compute_fingerprint(config.model.get('backbone', {}))
        self._once(('weights', weights, config.get('load_from')), check_weights, config)

    def check_baselines(self, trial: Trial) -> None:
        """Test the library's own weights of all rows of the table that read the same data.

        Raises:
            ValueError: For the first that fails.
        """
        data = _name_data(trial.config)
        root = self.root or resources()
        for row in read_rows(trial.row.table, root=self.root):
            if row.zoo and _name_data(read_config(root / row.config, False)) == data:
                self._once(
                    ('baseline', row.zoo), self._check_baseline, row.zoo, trial.launch.cluster
                )

    def _check_baseline(self, name: str, cluster: Cluster) -> None:
        folder = self.work_dir / ZOO
        passed = folder / f'{Path(name).stem}.json'
        with lock_folder(folder):
            if not passed.exists():
                print(f'testing {name} with the weights of its authors', flush=True)
                found = check_baseline(name, folder, cluster)
                write_file(passed, json.dumps(found) + '\n')
        self.baselines[name] = json.loads(passed.read_text(encoding='utf-8'))

    def _once(self, key: object, check: Callable[..., None], *args) -> None:
        if key not in self._outcomes:
            try:
                check(*args)
                self._outcomes[key] = None
            except (OSError, ValueError) as error:
                self._outcomes[key] = error
        error = self._outcomes[key]
        if error is not None:
            raise error


def _name_data(config: Config) -> list[object]:
    return [dataset.get('data_root') for dataset in datasets_of(config, 'val')]


def run_trial(trial: Trial, stages: Sequence[str], share: int | None = None) -> None:
    """Train and test a row, as far as that has not been done before.

    Args:
        trial: The row and its seed.
        stages: Some of ``STAGES``.
        share: Number of the GPUs' share to use; None uses what is there.

    Raises:
        CommandError: If training or test fail.
        OSError: If a file cannot be written.
    """
    cluster, folder = trial.launch.cluster, trial.folder
    env = {}
    if share is not None and cluster.gpus and cluster.launcher != 'slurm':
        env['CUDA_VISIBLE_DEVICES'] = _name_devices(share, cluster.gpus)

    with lock_folder(folder.path) as lock:
        run = partial(run_command, env=env, keep_open=[lock])
        state = folder.read()
        if 'train' in stages and 'train' not in state:
            _train(trial, run)
        if 'test' in stages and 'test' not in state:
            if 'train' not in folder.read():
                raise CommandError(f'{folder.path} holds no finished training to be tested')
            _test(trial, run)


def _name_devices(share: int, gpus: int) -> str:
    """Return the GPUs of a share, out of those that CUDA_VISIBLE_DEVICES names where it is set."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    start, stop = share * gpus, (share + 1) * gpus
    return ','.join(visible.split(',')[start:stop] if visible else map(str, range(start, stop)))


def _train(trial: Trial, run: Callable[..., float]) -> None:
    folder = trial.folder
    checkpoint = folder.find_checkpoint()
    log = folder.path / 'train.log'
    port = free_port(trial.launch.cluster)
    command = trial.train_command(resume=checkpoint is not None, port=port)
    origin = f', on from {checkpoint.name}' if checkpoint else ''
    print(f'{trial.title}: training{origin}, see {log}', flush=True)
    seconds = run(command, log)
    checkpoint = folder.find_checkpoint()
    if checkpoint is None:
        raise CommandError(f'the training came to its end without a checkpoint, see {log}')
    curves = read_training_log(folder.train_dir).train
    memory = [value for _, value in curves.get('memory', [])]
    facts = dict(
        checkpoint=checkpoint.name,
        sha256=compute_sha256(checkpoint),
        seconds=round(seconds),  # since its last start
        memory_mb=max(memory) if memory else None,
        log=log.name,
    )
    folder.finish('train', facts)


def _test(trial: Trial, run: Callable[..., float]) -> None:
    folder = trial.folder
    checkpoint = folder.train_dir / folder.read()['train']['checkpoint']
    command = trial.test_command(checkpoint, free_port(trial.launch.cluster))
    print(f'{trial.title}: test', flush=True)
    remove_metrics(folder.test_dir)
    seconds = run(command, folder.path / 'test.log')
    logged = read_metrics(folder.test_dir)
    images = trial.config.test_dataloader.batch_size * trial.launch.cluster.processes
    facts = dict(
        metrics=convert_metrics(logged),
        seconds=round(seconds),
        seconds_per_image=round(logged['time'] / images, 4),
    )
    folder.finish('test', facts)
    found = ', '.join(f'{name} {value}' for name, value in facts['metrics'].items())
    print(f'{trial.title}: {found}', flush=True)


def free_port(cluster: Cluster) -> int | None:
    """Return a port that nobody uses, for torch's launcher; None for the others."""
    if cluster.launcher != 'pytorch':
        return None
    with socket.socket() as holder:
        holder.bind(('localhost', 0))
        return holder.getsockname()[1]
