"""Trainings go on exactly, and what is saved is whole."""

import itertools
import os
import random

import numpy as np
import pytest
import torch

from contnet_mm.engine.seeds import SeededBatches, set_random_state
from tests.noisy_training import (
    EPOCHS,
    LENGTH,
    NUM_SAMPLES,
    Noise,
    Stop,
    assert_equal,
    interrupt,
    make_runner,
    names_in,
    read_last,
    train,
)

SCORES = [0.5, 0.9, 0.7]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('by_epoch', [True, False])
def test_an_interrupted_training_ends_as_one_in_one_go(tmp_path, by_epoch, workers):
    options = dict(by_epoch=by_epoch, workers=workers)
    interrupt(tmp_path / 'cut', 'after_train_iter', lambda r: r.iter == 7, **options)
    seed = read_last(tmp_path / 'cut')['meta']['seed']  # drawn by the first start
    train(tmp_path / 'cut', resume=True, **options)
    # The number of processes makes no difference either.
    train(tmp_path / 'whole', seed=seed, by_epoch=by_epoch)
    assert_equal(tmp_path / 'cut', tmp_path / 'whole')


def test_random_numbers_differ_between_iterations_ranks_and_seeds(monkeypatch):
    drawn = set()
    for seed, rank, first in itertools.product((0, 1), (0, 1), (0, 1, 2)):
        monkeypatch.setattr('contnet_mm.engine.seeds.get_rank', lambda rank=rank: rank)
        batches = SeededBatches(Noise())
        batches.start(seed, first)
        drawn.update(tuple(batches([0])[0]['inputs'].tolist()[1:]) for _ in range(2))
    # Two batches from each of three first iterations are four different ones.
    assert len(drawn) == 2 * 2 * 4
    for values in zip(*drawn, strict=True):  # of Python, NumPy and PyTorch
        assert len(set(values)) == len(drawn)


def test_the_step_draws_other_numbers_than_the_loading_of_its_batch():
    def draw(*key):
        set_random_state(*key)
        return random.random(), np.random.rand(), float(torch.rand(()))

    assert draw(0, 1, 5) == draw(0, 1, 5)
    assert not {*draw(0, 1, 5)} & {*draw(0, 0, 5)}


def test_what_a_dataset_does_with_a_batch_stays():
    class Batches(Noise):
        def __getitems__(self, indices):
            return [f'batch of {len(indices)}']

    assert SeededBatches(Batches())([1, 2]) == ['batch of 2']


def test_a_list_of_samples_can_be_trained_on(tmp_path):
    runner = make_runner(tmp_path, data=[dict(inputs=torch.rand(4)) for _ in range(NUM_SAMPLES)])
    runner.train()
    assert runner.iter == EPOCHS * LENGTH


@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_training_stopped_in_a_validation_misses_no_best_checkpoint(tmp_path, by_epoch):
    options = dict(by_epoch=by_epoch, save_best='score', rule='greater')
    second = (lambda r: r.epoch == 2) if by_epoch else (lambda r: r.iter == 2 * LENGTH)
    interrupt(tmp_path, 'before_val_iter', second, scores=SCORES, **options)
    train(tmp_path, resume=True, scores=SCORES, **options)
    (best,) = tmp_path.glob('best_*.pth')
    assert best.name == 'best_score_epoch_2.pth' if by_epoch else 'best_score_iter_10.pth'
    hub = read_last(tmp_path)['message_hub']
    assert hub['runtime_info']['best_score'] == 0.9
    assert hub['log_scalars']['val/score'].data[0].tolist() == SCORES[:2]


def test_a_finished_validation_is_not_repeated(tmp_path):
    options = dict(save_best='score', rule='greater', scores=SCORES)
    interrupt(tmp_path, 'before_train_iter', lambda r: r.epoch == 2, **options)
    train(tmp_path, resume=True, **options)
    history = read_last(tmp_path)['message_hub']['log_scalars']
    assert history['val/score'].data[0].tolist() == SCORES[:2]


def test_as_many_checkpoints_are_kept_as_the_config_says(tmp_path):
    train(tmp_path, scores=SCORES, save_best='score', rule='greater', max_keep_ckpts=1)
    expected = {'epoch_3.pth', 'best_score_epoch_2.pth', 'last_checkpoint'}
    assert names_in(tmp_path) == expected


# From the first checkpoint to the third; a kill at any of these moments leaves nothing for good.
@pytest.mark.parametrize('moment', range(18))
def test_there_is_a_whole_checkpoint_at_every_moment(tmp_path, monkeypatch, moment):
    calls = itertools.count()

    def count(function):
        def wrapped(*args, **kwargs):
            if 'last_checkpoint' in names_in(tmp_path) and next(calls) == moment:
                raise Stop
            return function(*args, **kwargs)

        return wrapped

    options = dict(save_best='score', rule='greater', max_keep_ckpts=1, scores=[0.1, 0.2, 0.3])
    with monkeypatch.context() as patch, pytest.raises(Stop):
        for name in ('fsync', 'replace', 'remove'):
            patch.setattr(os, name, count(getattr(os, name)))
        train(tmp_path, **options)
    read_last(tmp_path)
    train(tmp_path, resume=True, **options)
    expected = {'epoch_3.pth', 'best_score_epoch_3.pth', 'last_checkpoint'}
    assert names_in(tmp_path) == expected
