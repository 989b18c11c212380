"""Running the cells of one table: settings are tried, then all cells go in shuffled rounds."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from contnet_mm.benchmark.measure import Step, forget_compiled, free_memory, reason_of
from contnet_mm.benchmark.memory import peak_in_subprocess
from contnet_mm.benchmark.networks import Setting, list_settings
from contnet_mm.benchmark.plan import COMPILED, EAGER, Cell, Size
from contnet_mm.benchmark.statistics import choose_trial, is_timed, iterations_for

ROUND_SECONDS = 0.2  # a measurement takes at least
TRIAL_SECONDS = 0.05
TRIAL_REPEATS = 3
TRIAL_LIMIT = 2.0  # seconds, after which a trial is not repeated
WARM_UPS = {'cpu': 1, 'cuda': 20}


def new_cell(cell: Cell) -> dict:
    """Give the empty result of a cell; what is measured is filled in."""
    return dict(
        network=cell.network,
        mode=cell.mode,
        dtype=cell.dtype,
        setting=None,
        trials=[],
        compile_s=None,
        iterations=None,
        seconds=[],
        memory_mb=None,
        memory_error=None,
        error=None,
    )


def run_table(
    table: dict,
    cells: Sequence[Cell],
    size: Size,
    device: str,
    rounds: int,
    seed: int,
    with_memory: bool,
    quick: bool,
    save: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Measure the cells of one size and pass.

    Args:
        table: Is filled: its ``cells`` with a result each, complete after every round.
        cells: What to measure.
        size: Of the images.
        device: ``'cpu'`` or ``'cuda'``.
        rounds: How often each cell is timed.
        seed: Of the order in the rounds.
        with_memory: Measure the peak memory as well.
        quick: Compile a network only in the setting that was the fastest eagerly.
        save: Is called when there is something new to keep.
        say: Is called with lines that show the progress.
    """
    forget_compiled(raise_limit=True)
    results = {cell: new_cell(cell) for cell in cells}
    table['cells'] = list(results.values())
    steps: dict[Cell, Step] = {}
    for number, cell in enumerate(cells, start=1):
        began = time.perf_counter()
        eager = steps.get(replace(cell, mode=EAGER))
        settings = [eager.setting] if quick and eager else list_settings(cell.network)
        step = try_settings(results[cell], cell, settings, size, table['pass'], device)
        if step is not None:
            steps[cell] = step
        took = time.perf_counter() - began
        name = f'[{number}/{len(cells)}] {table["size"]} {table["pass"]} {cell}'
        say(f'{name}: {_outcome(results[cell])} (tried in {took:.0f} s)')
        save()
    time_rounds(steps, results, rounds, seed, save, say)
    if with_memory:
        for cell, step in steps.items():
            if is_timed(results[cell]):
                measure_memory(results[cell], cell, step, size, table['pass'], device)
                say(f'memory of {cell}: {_memory(results[cell])}')
                save()


def try_settings(
    result: dict,
    cell: Cell,
    settings: Sequence[Setting],
    size: Size,
    pass_name: str,
    device: str,
) -> Step | None:
    """Try settings of a cell for a moment and keep the fastest.

    Args:
        result: The cell's, where the trials are noted.
        cell: What to try.
        settings: In which ways.
        size: Of the images.
        pass_name: ``'inference'`` or ``'training'``.
        device: ``'cpu'`` or ``'cuda'``.

    Returns:
        The fastest, warmed up; None if all settings failed.
    """
    kept = None
    for setting in settings:
        trial = dict(setting=str(setting), ms=None, compile_s=None, error=None)
        result['trials'].append(trial)
        step = None
        try:
            step = Step(cell, setting, size, pass_name, device)
            first = step.first()
            trial['compile_s'] = round(first, 1) if cell.mode == COMPILED else None
            trial['ms'] = 1000 * _trial_seconds(step, device)
        except Exception as error:  # whatever a library raises is the result
            trial['error'] = reason_of(error)
        if choose_trial(result['trials']) == len(result['trials']) - 1:
            kept = step
        del step
        free_memory(device)
    best = choose_trial(result['trials'])
    if best is None:
        reasons = {trial['error']: trial['setting'] for trial in reversed(result['trials'])}
        result['error'] = '; '.join(f'{name}: {reason}' for reason, name in reasons.items())
        return None
    result['setting'] = result['trials'][best]['setting']
    result['compile_s'] = result['trials'][best]['compile_s']
    result['iterations'] = iterations_for(result['trials'][best]['ms'] / 1000, ROUND_SECONDS)
    return kept


def _trial_seconds(step: Step, device: str) -> float:
    began = time.perf_counter()
    seconds = step.time(WARM_UPS[device])
    iterations = iterations_for(seconds, TRIAL_SECONDS)
    timed = []
    while len(timed) < TRIAL_REPEATS:
        timed.append(step.time(iterations))
        if time.perf_counter() - began > TRIAL_LIMIT:
            break
    return min(timed)


def time_rounds(
    steps: dict[Cell, Step],
    results: dict[Cell, dict],
    rounds: int,
    seed: int,
    save: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Time all cells in each round, in shuffled order; only complete rounds are kept.

    Args:
        steps: What to time; a cell that fails on the way is left out from then on.
        results: Where the seconds are noted.
        rounds: How many.
        seed: Of the order.
        save: Is called after each round.
        say: Is called after each round with a line that shows it.
    """
    order = list(steps)
    shuffle = random.Random(seed).shuffle
    for number in range(1, rounds + 1):
        shuffle(order)
        began, seconds = time.perf_counter(), {}
        for cell in list(order):
            try:
                seconds[cell] = steps[cell].time(results[cell]['iterations'])
            except Exception as error:  # such as memory that no longer suffices
                results[cell]['error'] = f'in round {number}: {reason_of(error)}'
                say(f'{cell}: {_outcome(results[cell])}')
                order.remove(cell)
        for cell, value in seconds.items():
            results[cell]['seconds'].append(value)
        save()
        say(f'round {number}/{rounds}: {time.perf_counter() - began:.1f} s')


def measure_memory(
    result: dict, cell: Cell, step: Step, size: Size, pass_name: str, device: str
) -> None:
    """Note the peak memory of a cell, or why it cannot be told.

    Args:
        result: The cell's.
        cell: What to measure.
        step: The cell, warmed up.
        size: Of the images.
        pass_name: ``'inference'`` or ``'training'``.
        device: ``'cpu'`` or ``'cuda'``.
    """
    try:
        if device == 'cuda':
            peak = step.cuda_peak()
        else:
            peak = peak_in_subprocess(cell, step.setting, size, pass_name)
        result['memory_mb'] = round(peak, 1)
    except Exception as error:  # as in trials
        result['memory_error'] = reason_of(error)


def run_multiscale(
    table: dict,
    cells: Sequence[Cell],
    shapes: Sequence[Size],
    device: str,
    save: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Measure cells over a list of shapes, each of which comes once per pass over the list.

    The first pass meets every shape for the first time, with all that is compiled or planned for
    it; the second shows what remains.

    Args:
        table: Is filled: its ``cells`` with a result each.
        cells: What to measure.
        shapes: Of the image batches.
        device: ``'cpu'`` or ``'cuda'``.
        save: Is called when there is something new to keep.
        say: Is called with lines that show the progress.
    """
    table['shapes'] = [str(shape) for shape in shapes]
    results = [new_cell(cell) for cell in cells]
    table['cells'] = results
    for number, (cell, result) in enumerate(zip(cells, results, strict=True), start=1):
        # All modes take the setting that is fastest eagerly, on the first shape. timm's Swin is
        # built for one size.
        eager = replace(cell, mode=EAGER)
        settings = list_settings(cell.network, timm=False)
        step = try_settings(result, eager, settings, shapes[0], table['pass'], device)
        if step is not None:
            try:
                _run_shapes(result, cell, step.setting, shapes, table['pass'], device)
            except Exception as error:  # as in trials
                result['error'] = reason_of(error)
        del step
        free_memory(device)
        name = f'[{number}/{len(cells)}] {table["size"]} {table["pass"]} {cell}'
        say(f'{name}: {_passes(result)}')
        save()


def _run_shapes(
    result: dict,
    cell: Cell,
    setting: Setting,
    shapes: Sequence[Size],
    pass_name: str,
    device: str,
) -> None:
    from torch._dynamo.utils import counters

    forget_compiled(raise_limit=False)
    step = Step(cell, setting, shapes[0], pass_name, device)
    pass_seconds: list[float] = []
    graphs = [counters['stats']['unique_graphs']]
    for number in (1, 2):
        seconds = 0.0
        for shape in shapes:
            step.images = step.make_images(shape)
            seconds += step.time(1)
            if number == 1 and shape is shapes[0]:
                graphs.append(counters['stats']['unique_graphs'])
        pass_seconds.append(seconds)
        graphs.append(counters['stats']['unique_graphs'])
    result['pass_seconds'] = pass_seconds
    result['graphs'] = [after - before for before, after in pairwise(graphs)]


def _outcome(result: dict) -> str:
    if result['error'] is not None:
        return f'failed: {result["error"]}'
    ms = min(trial['ms'] for trial in result['trials'] if trial['ms'] is not None)
    compiled = '' if result['compile_s'] is None else f', compiled in {result["compile_s"]:.0f} s'
    return f'{ms:.4g} ms, {result["setting"]}{compiled}'


def _memory(result: dict) -> str:
    if result['memory_error'] is not None:
        return f'failed: {result["memory_error"]}'
    return f'{result["memory_mb"]:.0f} MB'


def _passes(result: dict) -> str:
    if result['error'] is not None:
        return f'failed: {result["error"]}'
    first, second = result['pass_seconds']
    graphs = sum(result['graphs'])
    return f'{first:.1f} s, then {second:.1f} s; {graphs} graphs compiled, {result["setting"]}'
