"""The base class of ConTNet and its parts: strict loading of weights, frozen norms."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit, initialize

from contnet_mm.checkpoint.load import load_pretrained
from contnet_mm.checkpoint.options import (
    RECORD,
    compare_options,
    find_record,
    make_record,
    metadata_being_loaded,
)
from contnet_mm.utils.checks import check_flag


class PretrainedModule(BaseModule):
    """A ConTNet or a part of one; tensors of a part have the names that they have in the whole.

    State dicts carry a record of its options in their metadata, and loading compares them.

    Args:
        norm_cfg: Norm at the start of each block; see :func:`~contnet_mm.models.blocks.build_norm`.
        norm_eval: Keep batch norm in eval mode while training.
        init_cfg: As in MMEngine, but ``Pretrained`` loads wholly or not at all.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``init_cfg`` is ``Pretrained`` without a file.
    """

    def __init__(
        self, norm_cfg: dict, norm_eval: bool, init_cfg: dict | list[dict] | None = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        _list_init_cfgs(init_cfg)
        self.norm_cfg, self.norm_eval = norm_cfg, check_flag('norm_eval', norm_eval)
        self._weights_loaded = False
        # Constructors fill these; see contnet_mm.checkpoint.options.
        self._options: dict[str, object] = {}
        self._geometry: dict[str, object] = {}

    def owns_key(self, key: str) -> bool:
        """Tell whether a key of the whole network belongs to a part that is built here."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; without it the values of the constructor stay.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If it cannot be read safely or does not cover this network.
        """
        cfgs = _list_init_cfgs(self.init_cfg)
        pretrained = [cfg for cfg in cfgs if _is_pretrained(cfg)]
        if self.is_init or not pretrained:
            super().init_weights()
            return
        initialize(self, [cfg for cfg in cfgs if cfg not in pretrained])
        # MMEngine's own loader would take what fits and leave the rest random.
        for cfg in pretrained:
            load_pretrained(self, cfg['checkpoint'], prefix=cfg.get('prefix'))
        self._is_init = True

    def train(self, mode: bool = True) -> PretrainedModule:
        """Switch to training or evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        self._freeze()
        if mode and self._frozen_without_weights():
            names = [n for n in ('frozen_stages', 'norm_eval', 'norm_cfg') if hasattr(self, n)]
            settings = ', '.join(f'{name}={getattr(self, name)}' for name in names)
            warnings.warn(
                f'{type(self).__name__} trains with {settings}, but no weights were loaded: what '
                'is frozen stays as initialised. Give a checkpoint, or train from scratch with '
                'the defaults, which freeze nothing (norm_eval=False and the like).',
                stacklevel=2,
            )
        return self

    def _frozen_without_weights(self) -> bool:
        """Tell whether something is frozen while no weights were loaded."""
        freezes_stages = getattr(self, 'frozen_stages', -1) >= 0  # an argument of ConTNet alone
        freezes_norms = self.norm_eval or not self.norm_cfg.get('requires_grad', True)
        return (freezes_stages or freezes_norms) and not self._weights_loaded

    def _freeze(self) -> None:
        if self.norm_eval:
            for module in self.modules():
                if hasattr(module, 'running_mean'):  # mmcv's batch norms are no torch ones
                    module.eval()

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, '_metadata', None)  # a dict of the caller's has none
        if metadata is not None:
            local = metadata.setdefault(prefix[:-1], {})
            local[RECORD] = make_record(self._options, self._geometry)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: Mapping, *args
    ) -> None:
        # Every way to load weights comes through here, MMEngine's `load_from` included.
        if any(prefix + name in state_dict for name, _ in self.named_parameters()):
            # Raises at once: an error that is handed back is a mere warning to MMEngine.
            record = find_record(metadata_being_loaded() or {prefix[:-1]: local_metadata}, prefix)
            for line in compare_options(record, self._options, self._geometry):
                print_log(f'{type(self).__name__}: {line}', 'current')
            self._weights_loaded = True
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _list_init_cfgs(init_cfg: dict | list[dict] | None) -> list[dict]:
    cfgs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
    if not isinstance(cfgs, (list, tuple)) or not all(isinstance(cfg, dict) for cfg in cfgs):
        raise TypeError(f'init_cfg must be a dict, a list of dicts or None, got {init_cfg!r}')
    for cfg in filter(_is_pretrained, cfgs):
        if not isinstance(cfg.get('checkpoint'), (str, Path)):
            raise ValueError(f'init_cfg {cfg} must name a file as checkpoint')
    return list(cfgs)


def _is_pretrained(cfg: dict) -> bool:
    kind = cfg.get('type')  # may carry a scope, as in 'mmengine.Pretrained'
    return kind is PretrainedInit or str(kind).rpartition('.')[2] == 'Pretrained'
