"""The demo data set: handwritten digits on photographs, in COCO's and Cityscapes' layouts."""

from .build import make_demo_data
from .options import DemoOptions

__all__ = ['DemoOptions', 'make_demo_data']
