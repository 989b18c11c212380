"""Run the scripts of onedl-mmdetection for `mim train mmdet` and `mim test mmdet`.

The name of this package has to sort before `mmdet-`: onedl-mim takes the first path that the
distribution has recorded for the root of the code, and looks for `tools/` in there.
"""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path


def hand_over(script):
    """Run the script of the same file name that the installed mmdet brings.

    Args:
        script: Path of the calling script, `train.py` or `test.py`.
    """
    spec = find_spec('mmdet')
    if spec is None:
        sys.exit('The package mmdet is missing: pip install onedl-mmdetection')
    target = Path(spec.submodule_search_locations[0], '.mim', 'tools', Path(script).name)
    sys.argv[0] = str(target)
    runpy.run_path(str(target), run_name='__main__')
