"""`type='contnet_mm.ConTNet'` is found from each library, from any folder."""

from tests.helpers import run_python

# What the libraries share is imported once, and each library in a copy of the process.
RUN = """
import importlib, os, sys
import mmcv.ops, mmengine.runner, torchvision
from mmengine.config import Config
from mmengine.registry import init_default_scope

def find(library):
    registry = importlib.import_module(f'{library}.registry').MODELS
    init_default_scope(library)
    # Whether a config imports it or not, which is tried in one more copy.
    if not os.fork():
        text = "custom_imports = dict(imports=['contnet_mm'], allow_failed_imports=False)"
        open(f'{library}.py', 'w').write(text)
        Config.fromfile(f'{library}.py')
        assert 'contnet_mm' in sys.modules
        build(library, registry, 'which imports it')
        os._exit(0)
    assert os.wait()[1] == 0
    assert 'contnet_mm' not in sys.modules
    build(library, registry, '')

def build(library, registry, how):
    # Without its scope a type would still be found, as the path of a class to import.
    for kind in (dict(type='contnet_mm.ConTNet'), dict(type='ConTNet', _scope_='contnet_mm')):
        net = registry.build(dict(kind, arch='tiny', out_indices=(0,)))
        assert type(net).__name__ == 'ConTNet', net
    print('found from', library, how, flush=True)

libraries = ('mmdet', 'mmseg', 'mmpretrain')
assert not {*libraries, 'contnet_mm'} & {*sys.modules}
for library in ('mmengine', *libraries):
    child = os.fork()
    if not child:
        find(library)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, library
"""


def test_the_type_resolves_in_a_fresh_process_in_an_unrelated_folder(tmp_path):
    result = run_python('-c', RUN, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = [line.strip() for line in result.stdout.splitlines() if line.startswith('found from ')]
    libraries = ('mmengine', 'mmdet', 'mmseg', 'mmpretrain')
    ways = ('which imports it', '')
    assert found == [f'found from {library} {way}'.strip() for library in libraries for way in ways]
