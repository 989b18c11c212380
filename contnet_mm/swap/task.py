"""What a config is for, told without building its model."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from mmengine.config import Config
from mmengine.registry import MODELS

from contnet_mm.apis.config import LIBRARIES
from contnet_mm.swap.edit import walk

MASKS = ('instance segmentation', 'panoptic segmentation')
TASKS = ('detection', *MASKS, 'semantic segmentation', 'classification')
# A class, or a base of it, and what its models are for. The first that fits counts.
KINDS = {
    'BaseMOTModel': 'tracking',
    'BaseReID': 're-identification',
    'GroundingDINO': 'grounding',
    'GLIP': 'grounding',
    'CLRNet': 'lane detection',
    'BaseSelfSupervisor': 'self-supervised',
    'BaseRetriever': 'retrieval',
    'DepthEstimator': 'depth estimation',
    'MultimodalEncoderDecoder': 'multimodal',
    'BaseClassifier': 'classification',
    'BaseSegmentor': 'semantic segmentation',
    'TwoStagePanopticSegmentor': 'panoptic segmentation',
    'MaskFormer': 'panoptic segmentation',
    'SingleStageInstanceSegmentor': 'instance segmentation',
    'BaseDetector': 'detection',
}


def kind_of(config: Config) -> str:
    """Return what a config is for, in a word or two.

    Args:
        config: Of any of the three libraries.

    Returns:
        One of ``TASKS``; or what else it is for, such as ``'tracking'``; ``'no model'`` where it
        has none, ``'unknown'`` where the class of its model is not known.
    """
    model = config.get('model')
    if not isinstance(model, Mapping) or not model:
        return 'no model'
    scope = library_of(config)
    bases = class_names(model.get('type'), scope)
    if 'SemiBaseDetector' in bases:
        model = model['detector']
        bases = class_names(model.get('type'), scope)
    kind = next((kind for name, kind in KINDS.items() if name in bases), None)
    if kind is None:
        # Where a part of a multimodal model is not installed, MMPretrain puts a function.
        module = getattr(class_of(model.get('type'), scope), '__module__', None) or ''
        multimodal = ('mmpretrain.models.multimodal', 'mmpretrain.utils.dependency')
        return 'multimodal' if module.startswith(multimodal) else 'unknown'
    if 'ImageClassifier' in bases and kind == 'classification' and not model.get('head'):
        return 'feature extraction'  # nothing that one could train
    if 'MaskFormer' in bases and not model.get('panoptic_head', {}).get('num_stuff_classes', 0):
        return 'instance segmentation'
    if kind == 'detection' and (
        any('mask_head' in part for _, part in walk(model))
        or 'RTMDetInsHead' in class_names((model.get('bbox_head') or {}).get('type'), scope)
    ):
        return 'instance segmentation'
    return kind


def library_of(config: Config) -> str | None:
    """Return the library of a config: its default scope, or whose class its model is.

    A pure-Python config names classes and needs no default scope.
    """
    scope = config.get('default_scope')
    if scope in LIBRARIES:
        return scope
    kind = (config.get('model') or {}).get('type')
    package = getattr(kind, '__module__', '').partition('.')[0]
    return package if package in LIBRARIES else None


def register(scope: str | None) -> None:
    """Register everything of a library; the default scope stays as it is.

    Raises:
        ImportError: If the library cannot be imported.
    """
    if scope is not None:
        import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)


def class_of(kind: str | type | None, scope: str | None) -> object:
    """Return what a ``type`` of a config stands for, None if nothing of that name is known."""
    if not isinstance(kind, str):
        return kind
    register(scope)
    with MODELS.switch_scope_and_registry(scope) as registry:
        return registry.get(kind)


def class_names(kind: str | type | None, scope: str | None) -> set[str]:
    """Return the names of a class and its bases; none for what is not known or not a class."""
    found = class_of(kind, scope)
    return {base.__name__ for base in found.__mro__} if isinstance(found, type) else set()


def type_name(node: object) -> str:
    """Return the name of the class that a part of a config names, without its library."""
    kind = node.get('type', '') if isinstance(node, Mapping) else ''
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2]
