"""The demo data: digits on photographs, in COCO's, Cityscapes' and ImageNet's layouts."""

from .build import make_demo_data
from .options import DemoOptions

__all__ = ['DemoOptions', 'make_demo_data']
