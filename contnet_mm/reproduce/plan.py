"""What would be run, to be read and pasted line by line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from contnet_mm.reproduce.gates import list_missing
from contnet_mm.reproduce.rows import find_zoo
from contnet_mm.reproduce.run import Trial


def render_plan(trials: Sequence[Trial], num_parallel: int) -> str:
    """Return the plan of trials: what is missing here, and every command.

    Args:
        trials: As ``make_trials`` returns them.
        num_parallel: How many run side by side.
    """
    cluster = trials[0].launch.cluster
    kind = f'{cluster.gpus} GPUs' if cluster.gpus > 1 else '1 GPU' if cluster.gpus else 'a CPU'
    lines = [f'{len(trials)} trainings on {kind} each, {num_parallel} at a time']
    zoos = list(dict.fromkeys(trial.row.zoo for trial in trials if trial.row.zoo))
    for name in zoos:
        lines += ['', f'# baseline: {name}', f'#   {find_zoo(name).weights}']
    for trial in trials:
        lines += ['', *_describe(trial)]
    return '\n'.join(lines) + '\n'


def _describe(trial: Trial) -> list[str]:
    launch, row, state = trial.launch, trial.row, trial.folder.read()
    expected = ', '.join(f'{name} {value:g}' for name, (value, _) in row.expected().items())
    iterations = (
        'iterations unknown' if launch.iterations is None else f'{launch.iterations:,} iterations'
    )
    lines = [
        f'# {row.table}: {trial.title}' + (f', expected {expected}' if expected else ''),
        f'#   {iterations} of {launch.batch} images, learning rate {launch.lr:g}',
    ]
    lines += [f'#   missing: {x.what}: {x.fix}' for x in list_missing(trial.config)]
    done = [stage for stage in ('train', 'test') if stage in state]
    lines += [f'#   done: {" and ".join(done)}, in {trial.folder.path}'] if done else []
    checkpoint = trial.folder.train_dir / name_last_checkpoint(trial)
    commands = (trial.train_command(), trial.test_command(checkpoint))
    return lines + [shlex.join(command) for command in commands]


def name_last_checkpoint(trial: Trial) -> str:
    """Return the name that MMEngine gives the last checkpoint of a training."""
    train_cfg = trial.config.train_cfg
    if 'max_iters' in train_cfg:
        return f'iter_{train_cfg.max_iters}.pth'
    return f'epoch_{train_cfg.max_epochs}.pth'
