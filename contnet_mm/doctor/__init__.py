"""What is wrong with an environment, and the command that fixes it.

This package has to run where torch is missing or broken, and importing contnet_mm needs torch.
Hence it uses the standard library alone, imports its own files relatively, and tools/doctor.py
loads it by its path.
"""

from .diagnosis import BAD, Diagnosis
from .examine import examine
from .facts import LIBRARIES, Facts, gather

__all__ = ['BAD', 'LIBRARIES', 'Facts', 'Diagnosis', 'examine', 'gather']
