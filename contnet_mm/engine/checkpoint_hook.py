"""Checkpoints that are whole or not there, and from which a training goes on exactly."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path

import mmengine.hooks
from mmengine.dist import is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.runner import EpochBasedTrainLoop, Runner

from contnet_mm.engine.feature_widths import check_feature_widths, check_loaded_widths
from contnet_mm.engine.seeds import IterationSeeds
from contnet_mm.registry import HOOKS
from contnet_mm.utils.files import remove_unfinished, write_file

BACKEND = 'contnet_mm'
# Names in the message hub: where the last validation has come to its end, what waits for removal.
# Those that start with train, val or test are logged.
VALIDATED, OUTDATED = 'last_val_iter', 'outdated_ckpts'


@register_backend(BACKEND, force=True)
class WholeFileBackend(LocalBackend):
    """Local files, each of which is written under a temporary name and renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file; under its name is what was there before, or all of the new content."""
        write_file(filepath, obj)


@HOOKS.register_module()
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """MMEngine's hook of the same name, for trainings that may be stopped at any moment.

    It takes the same arguments. Three things differ:

    - A checkpoint, the best one and the file ``last_checkpoint`` are written under a temporary name
      and renamed. An older one is removed only when the new one is there.
    - The random numbers of an iteration depend on the seed, the rank and the iteration alone, in
      the processes that load data too. A resumed training draws what one without interruption
      draws, and so ends with the same bits where its operations are deterministic.
    - With ``save_best``, a training that was stopped before a validation had come to its end
      validates when it is resumed, so that no best checkpoint is missed.
    """

    def before_run(self, runner: Runner) -> None:
        """Refuse a model whose neck or head would fail at its first image."""
        check_feature_widths(runner.model)

    def after_load_checkpoint(self, runner: Runner, checkpoint: Mapping) -> None:
        """Refuse a checkpoint whose neck or head would be left out, before it is loaded."""
        check_loaded_widths(runner.model, checkpoint.get('state_dict', checkpoint))

    def before_train(self, runner: Runner) -> None:
        """Clear up after a kill, and go on where it was."""
        out_dir = str(self.out_dir or runner.work_dir)
        if self.backend_args is None and self.file_client_args is None and '://' not in out_dir:
            self.backend_args = dict(backend=BACKEND)
        super().before_train(runner)
        self._remove_unfinished(runner)
        self._remove_outdated(runner)
        self.seeds = IterationSeeds(runner)
        if runner.iter and self.save_best and self._is_validation_missing(runner):
            self.last_ckpt = runner.message_hub.get_info('last_ckpt')
            runner.val_loop.run()

    @master_only
    def _remove_unfinished(self, runner: Runner) -> None:
        for folder in {str(self.out_dir), runner.work_dir}:
            if '://' not in folder:
                remove_unfinished(folder)

    def _is_validation_missing(self, runner: Runner) -> bool:
        loop, hub = runner.train_loop, runner.message_hub
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        step, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        is_due = step >= loop.val_begin and (step % loop.val_interval == 0 or step == end)
        return runner.val_loop is not None and is_due and hub.get_info(VALIDATED) != runner.iter

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the batches that come."""
        self.seeds.start_pass(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Seed the step."""
        self.seeds.start_step(runner)

    def after_val_epoch(self, runner: Runner, metrics: Mapping) -> None:
        """Save the best checkpoint, which says that this validation is done."""
        runner.message_hub.update_info(VALIDATED, runner.iter)
        super().after_val_epoch(runner, metrics)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        kept = []
        if self.max_keep_ckpts > 0:
            kept = [*self.keep_ckpt_ids]
            kept += [step] if step not in kept[-1:] else []
            # The oldest included: should this be killed, the resumed training removes it.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        write_file(Path(runner.work_dir) / 'last_checkpoint', str(self.last_ckpt))
        for old in kept[: -self.max_keep_ckpts]:
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: Mapping) -> None:
        """Save as MMEngine does, which removes the best one so far first: that waits."""
        backend, outdated = self.file_backend, []

        def postpone(path: str) -> None:
            outdated.append(path)
            runner.message_hub.update_info(OUTDATED, [*outdated])

        backend.remove = postpone
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            del backend.remove
        self._remove_outdated(runner)

    @master_only
    def _remove_outdated(self, runner: Runner) -> None:
        best = [getattr(self, 'best_ckpt_path', None)]
        best += getattr(self, 'best_ckpt_path_dict', {}).values()
        for path in runner.message_hub.get_info(OUTDATED, []):
            if path not in best and self.file_backend.isfile(path):
                self.file_backend.remove(path)
        runner.message_hub.update_info(OUTDATED, [])
