"""Run a benchmark: try settings of each case, then time all cases in shuffled rounds."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path

import torch

from contnet_mm.benchmark.measure import Step, free_memory, measure_peak, raised_limit, reason_of
from contnet_mm.benchmark.networks import Setting, list_settings
from contnet_mm.benchmark.plan import COMPILED, EAGER, Case
from contnet_mm.utils.files import write_file

ROUND_SECONDS = 0.2  # a measurement takes at least
TRIAL_SECONDS = 0.05
TRIAL_REPEATS = 3
TRIAL_LIMIT = 0.7  # seconds; a trial that takes longer is not repeated
WARM_UPS = {'cpu': 1, 'cuda': 20}


@dataclass(eq=False)
class Result:
    """What was measured of a case.

    Args:
        case: What ran, and how.
        setting: The fastest of those that were tried; None if all failed.
        trials: The settings that were tried, each with ``setting``, ``ms``, ``compile_s`` and
            ``error``.
        compile_s: Seconds of the first iteration, where it compiles.
        iterations: Number of them that are timed together.
        seconds: Of an iteration, in each round.
        memory_mb: Peak memory beyond weights and images.
        memory_error: Why that could not be measured.
        error: Why the case failed.
    """

    case: Case
    setting: str | None = None
    trials: list[dict] = field(default_factory=list)
    compile_s: float | None = None
    iterations: int | None = None
    seconds: list[float] = field(default_factory=list)
    memory_mb: float | None = None
    memory_error: str | None = None
    error: str | None = None

    @property
    def is_timed(self) -> bool:
        """Whether there are timings that count."""
        return self.error is None and bool(self.seconds)

    def __str__(self) -> str:
        if self.error is not None:
            return f'failed: {self.error}'
        ms = min(trial['ms'] for trial in self.trials if trial['ms'] is not None)
        compiled = '' if self.compile_s is None else f', compiled in {self.compile_s:.0f} s'
        return f'{ms:.4g} ms, {self.setting}{compiled}'


@dataclass
class Benchmark:
    """Measure cases, print the progress, and write what is done after each step.

    Args:
        path: JSON file to write.
        facts: What the file says besides the results.
        rounds: How often each case is timed.
        seed: Of the order in the rounds.
        with_memory: Measure the peak memory as well.
        quick: Compile a network only in the setting that was the fastest eagerly.
        results: Of all cases that :meth:`run` was given.
    """

    path: Path
    facts: dict
    rounds: int = 15
    seed: int = 0
    with_memory: bool = True
    quick: bool = False
    results: list[Result] = field(default_factory=list)

    def save(self) -> None:
        """Write facts and results."""
        content = {**self.facts, 'results': [asdict(result) for result in self.results]}
        write_file(self.path, json.dumps(content, indent=1) + '\n')

    def run(self, cases: Sequence[Case]) -> None:
        """Measure cases, of which those of one size and pass are neighbours."""
        for _, group in groupby(cases, key=lambda case: (case.size, case.pass_name)):
            results = [Result(case) for case in group]
            self.results += results
            torch.compiler.reset()
            with raised_limit():
                self._run_table(results)

    def _run_table(self, results: Sequence[Result]) -> None:
        """Measure cases of one size and pass."""
        steps: dict[Result, Step] = {}
        for number, result in enumerate(results, start=1):
            began = time.perf_counter()
            settings = list_settings(result.case.network)
            if self.quick:
                eager = replace(result.case, mode=EAGER)
                known = [step.setting for step in steps.values() if step.case == eager]
                settings = known or settings
            step = try_settings(result, result.case, settings)
            if step is not None:
                steps[result] = step
            took = time.perf_counter() - began
            outcome = f'{result} (tried in {took:.0f} s)'
            print(f'[{number}/{len(results)}] {result.case}: {outcome}', flush=True)
            self.save()
        self.time_rounds(steps)
        for result, step in steps.items() if self.with_memory else ():
            if result.is_timed:
                try:
                    result.memory_mb = round(measure_peak(step), 1)
                except Exception as error:  # whatever a library raises is the result
                    result.memory_error = reason_of(error)
                outcome = result.memory_error or f'{result.memory_mb:.0f} MB'
                print(f'memory of {result.case}: {outcome}', flush=True)
                self.save()

    def time_rounds(self, steps: dict[Result, Step]) -> None:
        """Time all cases in each round, in shuffled order; only complete rounds are kept.

        A case that fails is left out from then on.
        """
        order = list(steps)
        shuffle = random.Random(self.seed).shuffle
        for number in range(1, self.rounds + 1):
            shuffle(order)
            began, seconds = time.perf_counter(), {}
            for result in list(order):
                try:
                    seconds[result] = steps[result].time(result.iterations)
                except Exception as error:  # such as memory that no longer suffices
                    result.error = f'in round {number}: {reason_of(error)}'
                    print(f'{result.case}: {result}', flush=True)
                    order.remove(result)
            for result, value in seconds.items():
                result.seconds.append(value)
            self.save()
            took = time.perf_counter() - began
            print(f'round {number}/{self.rounds}: {took:.1f} s', flush=True)


def try_settings(result: Result, case: Case, settings: Sequence[Setting]) -> Step | None:
    """Try settings of a case briefly and keep the fastest.

    Args:
        result: Where the trials are noted.
        case: What to try.
        settings: How to build the network.

    Returns:
        The fastest, warmed up; None if all settings failed.
    """
    fastest, best = None, {}
    for setting in settings:
        trial = dict(setting=str(setting), ms=None, compile_s=None, error=None)
        result.trials.append(trial)
        step = None
        try:
            step = Step(case, setting)
            first = step.first()
            trial['compile_s'] = round(first, 1) if case.mode == COMPILED else None
            trial['ms'] = 1000 * _trial_seconds(step)
            if fastest is None or trial['ms'] < best['ms']:
                fastest, best = step, trial
        except Exception as error:  # whatever a library raises is the result
            trial['error'] = reason_of(error)
        del step
        free_memory()
    if fastest is None:
        reasons = {trial['error']: trial['setting'] for trial in reversed(result.trials)}
        result.error = '; '.join(f'{name}: {reason}' for reason, name in reasons.items())
        return None
    result.setting, result.compile_s = best['setting'], best['compile_s']
    result.iterations = iterations_for(best['ms'] / 1000, ROUND_SECONDS)
    return fastest


def iterations_for(seconds: float, wanted: float) -> int:
    """Return how many iterations of some seconds take at least the wanted seconds."""
    return max(1, math.ceil(wanted / max(seconds, 1e-6)))


def _trial_seconds(step: Step) -> float:
    seconds = step.time(WARM_UPS[step.case.device])
    iterations = iterations_for(seconds, TRIAL_SECONDS)
    repeats = TRIAL_REPEATS if seconds * iterations <= TRIAL_LIMIT else 1
    return min(step.time(iterations) for _ in range(repeats))
