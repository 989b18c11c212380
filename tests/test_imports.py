"""Which folder of the package may import which, and what an import costs."""

import ast
import subprocess
import sys
from importlib.util import resolve_name

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / 'contnet_mm'
# Each may import itself and those on its right. Files at the root (registry, version) know no
# folder; __init__ and __main__ hand over to all.
BELOW_MODELS = {'utils', 'checkpoint'}
BELOW_SWAP = {*BELOW_MODELS, 'models', 'engine', 'apis'}
ALLOWED = {
    'utils': set(),
    'checkpoint': {'utils'},
    'models': BELOW_MODELS,
    'engine': {*BELOW_MODELS, 'models'},
    'apis': {*BELOW_MODELS, 'models', 'engine'},
    'swap': BELOW_SWAP,
    'datasets': {*BELOW_SWAP, 'swap'},
    'benchmark': {*BELOW_SWAP, 'datasets'},
    'visualization': {*BELOW_SWAP, 'datasets'},
    'reproduce': {*BELOW_SWAP, 'datasets', 'benchmark'},
    'export': {*BELOW_SWAP, 'datasets', 'benchmark'},
    'doctor': set(),
}
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob('*/__init__.py'))
FILES = sorted(PACKAGE.rglob('*.py'))


def module_of(file):
    """Return the dotted name of a file of the package."""
    parts = file.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = set(map(module_of, FILES))


def imports(file):
    """Return the modules that a file imports, anywhere in it."""
    package = '.'.join(file.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = '.' * node.level + (node.module or '')
            name = resolve_name(name, package) if node.level else name
            # A folder's __init__ is not what `from folder import file` is about.
            files = {f'{name}.{alias.name}' for alias in node.names} & MODULES
            found |= files or {name}
    return found


def circles(arrows):
    """Return the names that can be reached from themselves."""
    reached = {name: set(others) for name, others in arrows.items()}
    for middle in arrows:
        for others in reached.values():
            if middle in others:
                others |= reached[middle]
    return sorted(name for name, others in reached.items() if name in others)


def test_every_folder_has_its_line_in_the_table():
    assert sorted(ALLOWED) == FOLDERS


@pytest.mark.parametrize('folder', FOLDERS)
def test_a_folder_imports_only_what_lies_below_it(folder):
    allowed = {folder, *ALLOWED[folder]} | (
        {'registry', 'version'} if folder != 'doctor' else set()
    )
    wrong = [
        f'{file.relative_to(ROOT)}: {name}'
        for file in (PACKAGE / folder).rglob('*.py')
        for name in imports(file)
        if name.split('.')[0] in ('contnet_mm', 'tests', 'tools')
        and name.partition('.')[2].split('.')[0] not in allowed
    ]
    assert not wrong


def test_no_file_imports_itself_by_way_of_others():
    arrows = {module_of(file): imports(file) & MODULES for file in FILES}
    assert not circles(arrows)
    assert circles({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c']


def test_the_doctor_imports_the_standard_library_alone():
    # probe.py is run by the interpreter under examination, and imports what it examines.
    files = [file for file in (PACKAGE / 'doctor').glob('*.py') if file.name != 'probe.py']
    heads = {name.split('.')[0] for file in files for name in imports(file)}
    assert heads <= {*sys.stdlib_module_names, 'contnet_mm'}


def loaded(code):
    """Return the names of the modules that are loaded after a piece of code, in a new process."""
    code = f'import sys; {code}; print(*sys.modules)'
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_the_package_alone_imports_no_torch():
    assert not {'torch', 'mmengine'} & loaded('import contnet_mm')


def test_the_network_imports_nothing_that_a_training_can_do_without():
    # What a backbone needs anyway is imported first, and left out.
    start = 'import torch, mmengine.model; before = {*sys.modules}; from contnet_mm import ConTNet'
    names = loaded(f'{start}; [sys.modules.pop(name, None) for name in before]')
    extra = {f'contnet_mm.{folder}' for folder in {*FOLDERS} - {'models', *BELOW_MODELS}}
    assert 'contnet_mm.models.contnet' in names
    assert not {'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torch._dynamo', *extra} & names
