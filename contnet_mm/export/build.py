"""Find out what a config and a checkpoint are exported as, and build it."""

from __future__ import annotations

import copy
from pathlib import Path

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope

from contnet_mm.apis.inference import load_inferencer
from contnet_mm.export.backbone import ExportedBackbone
from contnet_mm.export.network import ExportedNetwork, Size
from contnet_mm.models.contnet import ConTNet


def build_network(
    config: Config, checkpoint: str | Path, size: Size, backbone: bool = False
) -> ExportedNetwork:
    """Build the model of a config with the weights of a checkpoint, ready to be exported.

    The config's own ``init_cfg`` is ignored.

    Args:
        config: Of MMDetection, MMSegmentation or MMPretrain.
        checkpoint: Weights of the whole model; for a backbone whatever ConTNet's ``init_cfg``
            takes.
        size: Of the input.
        backbone: Whether to take the backbone alone.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If it does not fit the config, or the model cannot be exported.
    """
    if backbone:
        return _build_backbone(config, checkpoint, size)
    inferencer = load_inferencer(config, checkpoint, 'cpu')
    model = inferencer.model.eval()
    if config.default_scope == 'mmdet':
        from contnet_mm.export.detector import ExportedDetector as Network
    elif config.default_scope == 'mmseg':
        from contnet_mm.export.segmentor import ExportedSegmentor as Network
    else:
        from contnet_mm.export.classifier import ExportedClassifier as Network
    if config.default_scope == 'mmpretrain':
        classes = inferencer.classes
    else:
        classes = model.dataset_meta['classes']
    return Network(model, model.data_preprocessor, size, classes).eval()


def _build_backbone(config: Config, checkpoint: str | Path, size: Size) -> ExportedBackbone:
    cfg = copy.deepcopy(config.model)
    preprocessor = cfg.get('data_preprocessor') or copy.deepcopy(config.data_preprocessor)
    if config.default_scope == 'mmpretrain':
        preprocessor.setdefault('type', 'ClsDataPreprocessor')
    cfg.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    with DefaultScope.overwrite_default_scope(config.default_scope):
        net = MODELS.build(cfg.backbone)
        if not isinstance(net, ConTNet):
            raise ValueError(
                f'the backbone of the config is a {type(net).__name__}; --backbone exports a '
                'ConTNet, whose loading is strict'
            )
        net.init_weights()
        preprocessor = MODELS.build(preprocessor)
    return ExportedBackbone(revert_sync_batchnorm(net).eval(), preprocessor, size).eval()
