"""ConTNet (arXiv 2104.13497) for MMDetection, MMSegmentation and MMPretrain."""

from contnet_mm.models.contnet import ConTNet
from contnet_mm.models.contnet_layer import ConTLayer
from contnet_mm.swap import swap_backbone
from contnet_mm.version import __version__

__all__ = ['ConTLayer', 'ConTNet', '__version__', 'swap_backbone']
