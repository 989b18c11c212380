"""Two processes that train together are interrupted and resumed, to the same bits."""

import multiprocessing
import os
import socket

import pytest
import torch

from tests.noisy_training import assert_equal, interrupt, train

fork = multiprocessing.get_context('fork')


def work(rank, port, function, *args, **options):
    torch.cuda.set_device = lambda *_: None  # MMEngine calls it without a GPU, too
    names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_PORT=port)
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR='localhost')
    function(*args, launcher='pytorch', **options)


def together(function, *args, **options):
    """Call a function in two processes."""
    with socket.socket() as holder:
        holder.bind(('localhost', 0))
        port = holder.getsockname()[1]
    ranks = [
        fork.Process(target=work, args=(rank, port, function, *args), kwargs=options)
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(100)
    assert [process.exitcode for process in ranks] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('diff_rank_seed', [True, False])
def test_two_ranks_end_as_in_one_go(tmp_path, by_epoch, diff_rank_seed):
    options = dict(by_epoch=by_epoch, seed=3, diff_rank_seed=diff_rank_seed)
    together(interrupt, tmp_path / 'cut', 'after_train_iter', is_seventh, **options)
    together(train, tmp_path / 'cut', resume=True, **options)
    together(train, tmp_path / 'whole', **options)
    assert_equal(tmp_path / 'cut', tmp_path / 'whole')


def is_seventh(runner):
    return runner.iter == 6
