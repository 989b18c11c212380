"""Random numbers that depend on the seed and the iteration alone.

The numbers of an iteration are then the same whether the training came there in one go or was
resumed, and for any number of processes that load data.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.runner import Runner
from torch.utils.data import get_worker_info

LOADING, STEP = 0, 1  # what draws the numbers


def set_random_state(*key: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch.

    Args:
        *key: Numbers from 0 on. Keys that differ anywhere give unrelated random numbers.
    """
    python, numpy, pytorch = np.random.SeedSequence(key).generate_state(3, np.uint64).tolist()
    random.seed(python)
    np.random.seed([numpy >> 32, numpy & 0xFFFFFFFF])
    torch.manual_seed(pytorch)


class SeededBatches:
    """Get the samples of each batch with random numbers of its own.

    An object stands in for the ``__getitems__`` of a dataset, which PyTorch's loader calls once per
    batch, in the process that loads it.

    Args:
        dataset: The dataset.
    """

    def __init__(self, dataset: object) -> None:
        self.dataset, self.rank = dataset, get_rank()
        self.get_items = getattr(dataset, '__getitems__', None)
        # Shared with the processes that load data, which may outlive an epoch: the seed, and the
        # iteration of the first batch of this pass over the data.
        self.shared = torch.zeros(2, dtype=torch.int64).share_memory_()
        self.first, self.count = -1, 0

    def start(self, seed: int, iteration: int) -> None:
        """Announce a pass over the data, before the loader begins it.

        Args:
            seed: The same in all ranks.
            iteration: That of the first batch.
        """
        self.shared.copy_(torch.tensor([seed, iteration]))

    def __call__(self, indices: Sequence[int]) -> list:
        """Return the samples of a batch.

        Args:
            indices: Their indices in the dataset.
        """
        seed, first = self.shared.tolist()
        if first != self.first:
            self.first, self.count = first, 0
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        iteration = first + number + self.count * step  # workers get batches in turn
        self.count += 1
        set_random_state(seed, LOADING, self.rank, iteration)
        if self.get_items is not None:
            return self.get_items(indices)
        return [self.dataset[index] for index in indices]


class IterationSeeds:
    """Seed the batches and the steps of a training by their iteration.

    Args:
        runner: The runner, its checkpoint loaded.
    """

    def __init__(self, runner: Runner) -> None:
        seed = [runner.seed]  # which differs between ranks under diff_rank_seed
        broadcast_object_list(seed)
        (self.seed,) = seed
        loader = runner.train_dataloader
        # The sampler was built before the checkpoint told the seed.
        for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
            if hasattr(sampler, 'seed'):
                sampler.seed = self.seed
        batches = getattr(loader.dataset, '__getitems__', None)
        self.batches = batches if isinstance(batches, SeededBatches) else None
        if self.batches is None:
            with suppress(AttributeError):  # a list, whose samples are finished
                loader.dataset.__getitems__ = batches = SeededBatches(loader.dataset)
                self.batches = batches

    def start_pass(self, runner: Runner) -> None:
        """Prepare a pass over the data: an epoch, or a whole training by iterations."""
        iterator = getattr(runner.train_loop, 'dataloader_iterator', None)
        # To skip what has been trained, MMEngine 0.10.7 loads it from the first batch on.
        loads_all = iterator is not None and not hasattr(iterator, 'skip_iter')
        if self.batches is not None:
            self.batches.start(self.seed, 0 if loads_all else runner.iter)
        if loads_all:  # and its workers have begun already, with random numbers of their own
            loader = runner.train_dataloader
            if hasattr(loader.sampler, '_indices_of_rank'):
                loader.sampler.indices = loader.sampler._indices_of_rank()
            loader._iterator = None  # these workers
            runner.train_loop.dataloader_iterator = type(iterator)(loader)

    def start_step(self, runner: Runner) -> None:
        """Prepare the step of an iteration, for which its batch has been loaded."""
        set_random_state(runner.seed, STEP, runner.iter)
