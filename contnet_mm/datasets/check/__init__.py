"""Checks of data sets on disk, before a training spends days on them."""

from .from_config import parts_of_config
from .issues import DatasetIssue
from .parts import Part, check_parts
from .published import KINDS, parts_of_folder

__all__ = ['KINDS', 'DatasetIssue', 'Part', 'check_parts', 'parts_of_config', 'parts_of_folder']
