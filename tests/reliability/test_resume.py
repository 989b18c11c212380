"""A training of each family that is interrupted and resumed ends as one in one go, to the bit."""

import random

import pytest
from mmengine.registry import DefaultScope

from tests.reliability.trainings import (
    EPOCHS,
    FAMILIES,
    STEPS,
    InterruptedTraining,
    differences,
    logged,
    make_config,
    make_data,
    state_of,
    train,
)

pytestmark = pytest.mark.slow  # tests/engine has a small model

QUICK = 'classifier'
CASES = [(family, workers) for family in FAMILIES for workers in (0, 2)]
whole = {}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trainings')
    make_data(folder)
    return folder


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch, folder):
    monkeypatch.setattr(DefaultScope, '_instance_dict', DefaultScope._instance_dict.copy())
    monkeypatch.chdir(folder)


def result(work_dir):
    return state_of(work_dir) | dict(log=logged(work_dir))


def train_in_one_go(family, folder):
    """Return what a training comes to, without processes that load data."""
    if family not in whole:
        work_dir = folder / family / 'whole'
        runner = train(make_config(family, work_dir))
        assert runner.max_iters == EPOCHS * STEPS
        whole[family] = result(work_dir)
        assert whole[family]['log'].keys() == {
            *(('train', step) for step in range(1, EPOCHS * STEPS + 1)),
            *(
                ('val', step if runner.val_interval == 1 else step * STEPS)
                for step in range(1, EPOCHS + 1)
            ),
        }
    return whole[family]


def interrupt_twice(config, rng):
    """Interrupt a training in its second epoch, and again before it is done; let it end then."""
    first = rng.randrange(STEPS, 2 * STEPS)
    for iteration in (first, rng.randrange(first, EPOCHS * STEPS)):
        with pytest.raises(InterruptedTraining):
            train(config, interrupt=iteration, resume=True)
    train(config, resume=True)


def test_the_families_are_four_with_two_ways_to_load():
    assert len(CASES) == 8


@pytest.mark.parametrize(('family', 'workers'), CASES)
def test_an_interrupted_training_ends_as_one_in_one_go(family, workers, folder):
    expected = train_in_one_go(family, folder)
    work_dir = folder / family / f'cut_{workers}'
    interrupt_twice(make_config(family, work_dir, workers), random.Random(f'{family} {workers}'))
    assert not differences(result(work_dir), expected)


def test_with_the_hook_of_mmengine_it_draws_other_random_numbers(folder):
    options = {'default_hooks.checkpoint.type': 'CheckpointHook'}
    in_one_go, cut = folder / QUICK / 'mmengine', folder / QUICK / 'mmengine_cut'
    train(make_config(QUICK, in_one_go, **options))
    interrupt_twice(make_config(QUICK, cut, **options), random.Random(0))
    lines = differences(result(cut), result(in_one_go))
    assert any(line.startswith('/state_dict') for line in lines)
    # The first epoch was done once.
    assert not [line for line in lines if line.startswith(f"/log/('train', {STEPS})")]
