"""ConTNet (arXiv 2104.13497) for MMDetection, MMSegmentation and MMPretrain."""

from importlib import import_module

from contnet_mm.version import __version__

# Imported when they are asked for (PEP 562): a training needs no planner of swaps, and what only
# looks a path up needs no torch.
_HOMES = {
    'ConTLayer': 'contnet_mm.models.contnet_layer',
    'ConTNet': 'contnet_mm.models.contnet',
    'get_model': 'contnet_mm.apis.model_zoo',
    'list_models': 'contnet_mm.apis.model_zoo',
    'register_mmpretrain': 'contnet_mm.apis.model_zoo',
    'swap_backbone': 'contnet_mm.swap',
}

__all__ = [
    'ConTLayer',
    'ConTNet',
    '__version__',
    'get_model',
    'list_models',
    'register_mmpretrain',
    'swap_backbone',
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
