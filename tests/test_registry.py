"""`type='contnet_mm.ConTNet'` is found from each library, from any folder."""

import pytest

from tests.helpers import run_python

RUN = """
import sys
from mmengine.config import Config
from mmengine.registry import init_default_scope
import importlib
library, custom_imports = sys.argv[1:]
registry = importlib.import_module(f'{library}.registry').MODELS
if custom_imports == 'yes':
    text = "custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)"
    open('config.py', 'w').write(text)
    Config.fromfile('config.py')
else:
    assert 'contnet_mm' not in sys.modules
init_default_scope(library)
net = registry.build(dict(type='contnet_mm.ConTNet', arch='tiny', out_indices=(0,)))
assert type(net).__name__ == 'ConTNet', net
print('found from', library)
"""


@pytest.mark.parametrize(
    ('library', 'custom_imports'),
    [('mmdet', 'no'), ('mmseg', 'no'), ('mmpretrain', 'no'), ('mmengine', 'no'), ('mmdet', 'yes')],
)
def test_the_type_resolves_in_a_fresh_process_in_an_unrelated_folder(
    tmp_path, library, custom_imports
):
    result = run_python('-c', RUN, library, custom_imports, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f'found from {library}' in result.stdout
