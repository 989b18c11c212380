"""`type='contnet_mm.ConTNet'` is found from each library, from any folder."""

from tests.helpers import run_python

# What the libraries share is imported once, and each library in a copy of the process.
RUN = """
import importlib, os, sys
import mmcv.ops, mmengine.runner, torchvision
from mmengine.config import Config
from mmengine.registry import init_default_scope

def find(library, imports_it):
    registry = importlib.import_module(f'{library}.registry').MODELS
    if imports_it:
        text = "custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)"
        open('config.py', 'w').write(text)
        Config.fromfile('config.py')
    assert ('contnet_mm' in sys.modules) == imports_it
    init_default_scope(library)
    net = registry.build(dict(type='contnet_mm.ConTNet', arch='tiny', out_indices=(0,)))
    assert type(net).__name__ == 'ConTNet', net
    print('found from', library, 'which imports it' * imports_it, flush=True)

libraries = ('mmdet', 'mmseg', 'mmpretrain')
assert not {*libraries, 'contnet_mm'} & {*sys.modules}
for case in [*((name, False) for name in ('mmengine', *libraries)), ('mmdet', True)]:
    child = os.fork()
    if not child:
        find(*case)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, case
"""


def test_the_type_resolves_in_a_fresh_process_in_an_unrelated_folder(tmp_path):
    result = run_python('-c', RUN, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    libraries = ['mmengine', 'mmdet', 'mmseg', 'mmpretrain', 'mmdet which imports it']
    found = [line.strip() for line in result.stdout.splitlines() if line.startswith('found from ')]
    assert found == [f'found from {library}' for library in libraries]
