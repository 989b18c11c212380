"""Checks of data sets on disk, before a training spends days on them."""

from .check import check_parts
from .findings import Finding
from .from_config import parts_of_config
from .parts import ClassificationPart, DetectionPart, SegmentationPart
from .published import KINDS, parts_of_folder

__all__ = [
    'KINDS',
    'ClassificationPart',
    'DetectionPart',
    'Finding',
    'SegmentationPart',
    'check_parts',
    'parts_of_config',
    'parts_of_folder',
]
