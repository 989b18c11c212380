"""The package's own scope under MMEngine's registries.

MMEngine imports ``<scope>.registry`` when a type carries a scope, so ``type='contnet_mm.ConTNet'``
is found from MMDetection, MMSegmentation and MMPretrain without ``custom_imports``.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='contnet_mm',
    locations=['contnet_mm.models.contnet', 'contnet_mm.models.contnet_layer'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='contnet_mm',
    locations=['contnet_mm.engine.checkpoint_hook', 'contnet_mm.engine.check_finite'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_CONSTRUCTORS,
    scope='contnet_mm',
    locations=['contnet_mm.engine.layer_decay'],
)
