"""A hook that ends a training whose numbers overflowed, and says where."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from contnet_mm.registry import HOOKS
from contnet_mm.utils.checks import check_integer


class Watch:
    """Note which modules without parts give a tensor that holds an infinity or NaN.

    Args:
        model: Model that holds the modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self._flags: list[tuple[str, Tensor]] = []
        self._handles = [
            module.register_forward_hook(lambda *args, name=name: self._note(name, args[2]))
            for name, module in model.named_modules()
            if next(module.children(), None) is None
        ]

    def _note(self, name: str, output: object) -> None:
        if torch.is_tensor(output) and output.is_floating_point():
            self._flags.append((name, output.detach().isfinite().all()))  # not waited for

    def finish(self) -> list[str]:
        """Stop watching; return the names in the order of their calls."""
        for handle in self._handles:
            handle.remove()
        return [name for name, is_finite in self._flags if not is_finite]


@HOOKS.register_module()
class CheckFiniteHook(Hook):
    """End with an error that names where numbers stopped being finite.

    MMDetection's ``CheckInvalidLossHook`` looks at the loss alone. Where the maps of one batch
    overflow in float16, the loss scaler skips its step, but batch norm keeps the infinity in its
    running statistics: the training goes on, and every validation after it finds nothing.

    Args:
        interval: Iterations of training between two checks, which look at the results of modules,
            losses, parameters and running statistics. Each validation and test starts with a check
            of the last two.

    Raises:
        FloatingPointError: If any of these is infinite or NaN.
    """

    def __init__(self, interval: int = 50) -> None:
        self.interval = check_integer('interval', interval, low=1)
        self._watch: Watch | None = None

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Watch the modules in an iteration that ends with a check."""
        if self.every_n_train_iters(runner, self.interval):
            self._watch = Watch(_unwrap(runner.model))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: Mapping[str, Tensor | float] | None = None,
    ) -> None:
        """Check what the iteration computed and what it left behind."""
        if self._watch is None:
            return
        modules, self._watch = self._watch.finish(), None
        losses = {name: torch.as_tensor(loss) for name, loss in (outputs or {}).items()}
        _check(runner, runner.iter + 1, modules, losses)

    def before_val(self, runner: Runner) -> None:
        """Check parameters and running statistics."""
        _check(runner, runner.iter, [], {})

    before_test = before_val


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _check(runner: Runner, iteration: int, modules: list[str], losses: Mapping) -> None:
    model = _unwrap(runner.model)
    found = [
        ('results of modules', modules),
        ('losses', _not_finite(losses)),
        ('parameters', _not_finite(dict(model.named_parameters()))),
        ('running statistics', _not_finite(dict(model.named_buffers()))),
    ]
    parts = [f'{len(names)} {kind}, the first {names[0]}' for kind, names in found if names]
    if parts:
        raise FloatingPointError(
            f'infinity or NaN after {iteration} iterations in {"; ".join(parts)}. Go back to an '
            'earlier checkpoint; lower the learning rate, clip gradients, or replace float16 by '
            'bfloat16, which has the range of float32. interval=1 finds the first iteration.'
        )


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    return [n for n, x in tensors.items() if x.is_floating_point() and not x.isfinite().all()]
