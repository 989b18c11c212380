"""What would be run, to be read and pasted line by line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from contnet_mm.reproduce.disk import count_bytes, count_checkpoints
from contnet_mm.reproduce.gates import list_missing
from contnet_mm.reproduce.launch import name_last_checkpoint
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
    iterations = [trial.launch.iterations for trial in trials]
    disk = sum(count_checkpoints(trial.config) * count_bytes(trial.config) for trial in trials)
    lines = [
        f'{len(trials)} trainings on {kind} each, {num_parallel} at a time; '
        f'{_show_iterations(None if None in iterations else sum(iterations))} in all; '
        f'about {_show_size(disk)} of checkpoints'
    ]
    zoos = list(dict.fromkeys(trial.row.zoo for trial in trials if trial.row.zoo))
    for name in zoos:
        lines += ['', f'# baseline: {name}', f'#   {find_zoo(name).weights}']
    for trial in trials:
        lines += ['', *_describe(trial)]
    return '\n'.join(lines) + '\n'


def _describe(trial: Trial) -> list[str]:
    launch, row, state = trial.launch, trial.row, trial.folder.read()
    expected = ', '.join(f'{name} {value:g}' for name, (value, _) in row.expected().items())
    number, size = count_checkpoints(trial.config), count_bytes(trial.config)
    lines = [
        f'# {row.table}: {trial.title}' + (f', expected {expected}' if expected else ''),
        f'#   {_show_iterations(launch.iterations)} of {launch.batch} images, '
        f'learning rate {launch.lr:g}',
        f'#   {number} checkpoints at once, of {_show_size(size)} each',
    ]
    lines += [f'#   missing: {x.what}: {x.fix}' for x in list_missing(trial.config)]
    done = [stage for stage in ('train', 'test') if stage in state]
    lines += [f'#   done: {" and ".join(done)}, in {trial.folder.path}'] if done else []
    checkpoint = trial.folder.train_dir / name_last_checkpoint(trial.config)
    commands = (trial.train_command(), trial.test_command(checkpoint))
    return lines + [shlex.join(command) for command in commands]


def _show_iterations(number: int | None) -> str:
    return 'an unknown number of iterations' if number is None else f'{number:,} iterations'


def _show_size(size: int) -> str:
    return f'{size / 1e9:.2f} GB'
