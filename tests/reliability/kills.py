"""Kill trainings of seconds, again and again, and look at what they leave.

Half of the kills come at a random time. The others come while a checkpoint is written: the kernel
ends the process at a random byte of a file. Run ``python -m tests.reliability.kills --help``.
"""

import argparse
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from contnet_mm.checkpoint.read import read_checkpoint
from tests.reliability.trainings import differences, make_config, make_data, state_of, train

LAST_ITERATION = 11
LEAST_BYTES = 1 << 16  # logs are smaller, checkpoints larger


@HOOKS.register_module(force=True)
class ByteLimitHook(Hook):
    """Lets the kernel kill the process when a file has grown to a size, from an iteration on."""

    def __init__(self, iteration, in_validation, size):
        self.iteration, self.in_validation, self.size = iteration, in_validation, size

    def _limit(self):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.in_validation and runner.iter >= self.iteration:
            self._limit()

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.in_validation and runner.iter >= self.iteration:
            self._limit()


def fork_training(config, output):
    """Start a training that goes on from the last checkpoint, in a copy of this process.

    A copy has imported all that takes seconds. Returns its process id.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(output, 'w') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        train(config, resume=True)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child):
    """Return the exit status of a process, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Victim:
    """A training in a folder of its own.

    Args:
        folder: The folder.
        config: Of the training.
    """

    def __init__(self, folder, config):
        self.folder, self.config, self.output = folder, config, folder.parent / f'{folder.name}.log'
        self.step, self.failures = 0, []

    def run(self, kill_after=None, limit=None):
        """Start it; kill it after seconds, or at a byte of a file. Return its exit status."""
        config = self.config
        if limit is not None:
            config.custom_hooks = [dict(type='mmengine.ByteLimitHook', **limit)]
        child = fork_training(config, self.output)
        config.pop('custom_hooks', None)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        status = wait(child)
        text = self.output.read_text()
        resumed = re.search(r'resumed epoch: (\d+), iter', text)
        if resumed and int(resumed[1]) != self.step:
            self.failures.append(f'went on from {resumed[1]} after {self.step}')
        if status > 0:
            self.failures.append(f'did not start: {text.strip().splitlines()[-1]}')
        return status

    def examine(self):
        """Look at every file that has the name of a checkpoint, and at the last one's record."""
        for path in self.folder.glob('*.pth'):
            try:
                read_checkpoint(path)
            except ValueError as error:
                self.failures.append(f'torn: {str(error)[:200]}')
        record = self.folder / 'last_checkpoint'
        if not record.exists():
            if self.step:
                self.failures.append('the record is lost')
            return
        last = Path(record.read_text())
        if not last.is_file():
            self.failures.append(f'the record names {str(last)!r}, which is no file')
            return
        step = int(last.stem.split('_')[1])
        if step < self.step:
            self.failures.append(f'the record goes back from {self.step} to {step}')
        self.step = step

    def unfinished(self):
        """Return how many files were cut."""
        return len([*self.folder.glob('.*.unfinished')])


def kill_trainings(num_kills, seed, work_dir, hook, family='classifier', report=print):
    """Kill trainings, and let each come to its end after one to six kills.

    Returns:
        Counts: kills, those inside the writing of a checkpoint, trainings, starts; and failures as
        text.
    """
    rng = random.Random(seed)
    make_data(work_dir)
    os.chdir(work_dir)
    options = {'default_hooks.checkpoint.type': hook, 'log_level': 'INFO'}
    options['default_hooks.checkpoint.max_keep_ckpts'] = 1

    def make(name, workers=0):
        (work_dir / name).mkdir()
        config = make_config(family, work_dir / name, workers, **options)
        return Victim(work_dir / name, config)

    whole, start = make('whole'), time.monotonic()
    assert whole.run() == 0, whole.output.read_text()
    seconds = time.monotonic() - start
    expected = state_of(whole.folder)
    names = sorted(path.name for path in whole.folder.glob('*.pth'))
    size = max(path.stat().st_size for path in whole.folder.glob('*.pth'))
    counts = dict(kills=0, in_writing=0, trainings=0, starts=0, failures=[])
    while counts['kills'] < num_kills:
        victim = make(f'victim_{counts["trainings"]}', workers=rng.choice((0, 0, 0, 2)))
        for _ in range(rng.randint(1, 6)):
            if counts['starts'] % 2:
                status = victim.run(kill_after=rng.uniform(0, seconds))
            else:
                limit = dict(
                    iteration=rng.randint(0, LAST_ITERATION),
                    in_validation=rng.random() < 0.5,
                    size=rng.randint(LEAST_BYTES, size - 1),
                )
                status = victim.run(limit=limit)
            counts['starts'] += 1
            counts['kills'] += status < 0
            counts['in_writing'] += status == -signal.SIGXFSZ
            victim.examine()
            if status >= 0 or victim.failures or counts['kills'] == num_kills:
                break
        status = victim.run() if not victim.failures else 1
        counts['starts'] += 1
        counts['trainings'] += 1
        if status == 0:
            victim.examine()
            lines = differences(state_of(victim.folder), expected)
            victim.failures += [f'{len(lines)} values differ, such as {lines[0]}'] if lines else []
            left = sorted(path.name for path in victim.folder.glob('*.pth'))
            victim.failures += [f'left are {left}, not {names}'] if left != names else []
            victim.failures += ['a cut file is left'] if victim.unfinished() else []
        counts['failures'] += [f'{victim.folder.name}: {line}' for line in victim.failures]
        report(f'{victim.folder.name}: {counts["kills"]} kills, {victim.failures or "as expected"}')
    return counts


def main():
    """Kill, and print what was counted; the exit status is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--hook', default='contnet_mm.CheckpointHook')
    parser.add_argument('--family', default='classifier', help='one that trains by epochs')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
        counts = kill_trainings(args.kills, args.seed, Path(folder), args.hook, args.family, report)
    print(json.dumps(counts, indent=2))
    sys.exit(bool(counts['failures']))


if __name__ == '__main__':
    main()
