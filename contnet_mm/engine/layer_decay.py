"""Layer-wise decay of the learning rate for detectors and segmentors.

MMPretrain's constructor of the same name asks a classifier for ``get_layer_depth``; those of
MMDetection and MMSegmentation know a few classes by name and refuse others.
"""

from __future__ import annotations

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from contnet_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LearningRateDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Optimizer constructor that lowers the learning rate of layers towards the image.

    A parameter of layer ``d`` of ``n`` learns at ``layer_decay_rate ** (n - 1 - d)`` times its
    rate; what follows the backbone keeps its rate. ``paramwise_cfg`` takes ``layer_decay_rate`` and
    every field of MMEngine's default constructor.

    Raises:
        ValueError: If ``layer_decay_rate`` is missing or not above 0 and at most 1.
        TypeError: When called with a model whose ``backbone`` has no ``get_layer_depth``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if type(rate) not in (int, float) or not 0 < rate <= 1:
            raise ValueError(
                'paramwise_cfg must give layer_decay_rate, above 0 and at most 1, such as 0.8, '
                f'got {rate!r}'
            )

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: object
    ) -> None:
        """Add the parameters of a module, each in a group of its own; log the rates by layer.

        Args:
            params: Groups so far; added to in place.
            module: The model, or a part of it when called for its children.
            prefix: Name of the part within the model.
            **kwargs: Passed on to MMEngine's constructor.
        """
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:
            return
        backbone = getattr(module, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise TypeError(
                'layer-wise decay needs a model whose backbone has get_layer_depth, such as '
                f'ConTNet, got {type(module).__name__} with {type(backbone).__name__}'
            )
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        layers: dict[tuple[int, float], list[float]] = {}
        for group in params:
            name = names[id(group['params'][0])]  # a group holds one parameter
            depth, num_layers = backbone.get_layer_depth(name, prefix='backbone.')
            scale = self.paramwise_cfg['layer_decay_rate'] ** (num_layers - 1 - depth)
            group['lr'] = group.get('lr', self.base_lr) * scale
            layers.setdefault((depth, scale), []).append(group['lr'])
        # MMEngine has printed the rates without decay.
        for (depth, scale), rates in sorted(layers.items()):
            lowest, highest = min(rates), max(rates)
            span = f'{lowest:.4g}' + (f' to {highest:.4g}' if highest > lowest else '')
            print_log(
                f'layer-wise decay -- layer {depth}: {len(rates)} parameters at lr {span}, '
                f'factor {scale:.4g}',
                logger='current',
            )
