"""A pair of processes that train together by gloo; started once, it takes one job after another."""

import traceback
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import wait

import torch

from tests.helpers import ROOT

# A process that imports nothing but this forks both, which saves importing torch twice.
PRELOAD = ['torch', 'mmengine.runner', 'contnet_mm.models.contnet', 'tests.processes']


class JobError(RuntimeError):
    """What went wrong in one of the processes."""


class Pair:
    """Two processes of one gloo group.

    Args:
        folder: Where they meet.
        limit: Seconds that a job may take.
    """

    def __init__(self, folder, limit=300):
        self.folder, self.limit, self.starts, self.processes = folder, limit, 0, []

    def start(self):
        self.starts += 1
        context = get_context('forkserver')
        context.set_forkserver_preload(PRELOAD)
        self.pipes, ends = zip(*(context.Pipe() for _ in range(2)), strict=True)
        meeting = f'file://{self.folder}/{self.starts}'
        self.processes = [
            context.Process(target=_work, args=(rank, meeting, ends[rank], str(ROOT)), daemon=True)
            for rank in range(2)
        ]
        for process, end in zip(self.processes, ends, strict=True):
            process.start()
            end.close()  # so that a dead process closes the last one

    def stop(self):
        for process in self.processes:
            process.kill()
            process.join()
        self.processes = []

    def run(self, job, *args):
        """Return what ``job(rank, *args)`` returns in each process.

        Args:
            job: A function of a module.
            *args: What it takes beside the rank.

        Raises:
            JobError: If it raises in one of them, a process ends, or time is up.
        """
        if not self.processes:
            self.start()
        for pipe in self.pipes:
            pipe.send((job, args))
        results, open_pipes = [None, None], list(self.pipes)
        while open_pipes:
            ready = wait(open_pipes, self.limit)
            try:
                if not ready:
                    raise JobError(f'{job.__name__}{args} hangs: no result in {self.limit} s')
                for pipe in ready:
                    open_pipes.remove(pipe)
                    results[self.pipes.index(pipe)] = self._receive(pipe)
            except JobError:
                self.stop()
                raise
        return results

    def _receive(self, pipe):
        try:
            result = pipe.recv()
        except EOFError:
            raise JobError(f'process {self.pipes.index(pipe)} ended') from None
        if isinstance(result, JobError):
            raise result
        return result


def _work(rank, meeting, pipe, root):
    import sys

    sys.path.insert(0, root)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=250)
    )
    while True:
        job, args = pipe.recv()
        try:
            result = job(rank, *args)
        except Exception:
            result = JobError(f'process {rank}: {traceback.format_exc()}')
        pipe.send(result)
