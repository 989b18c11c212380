"""What is wrong with an environment, and the command that mends it.

This package has to run where torch is missing or broken, and importing contnet_mm needs torch.
Hence it uses the standard library alone, imports its own files relatively, and tools/doctor.py
loads it by its path.
"""

from .examine import examine
from .facts import LIBRARIES, Facts, gather
from .finding import BAD, Finding

__all__ = ['BAD', 'LIBRARIES', 'Facts', 'Finding', 'examine', 'gather']
