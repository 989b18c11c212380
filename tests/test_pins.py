"""requirements/ pins the versions; whatever else names one, says the same."""

import ast
import importlib.metadata
import re
import subprocess
import sys

import pytest

from contnet_mm.apis import config
from contnet_mm.doctor import facts
from contnet_mm.doctor.commands import STACKS, TRIED
from tests.helpers import ROOT
from tests.tools.environment import MADE_BY_SETUP, only_made
from tools.setup_env import environment

# Why not any version: (package, lowest version, first version that is too new).
BOUNDS = {
    'onedl': [('numpy', (2, 2), (2, 3)), ('setuptools', (80,), (82,))],
    'openmmlab': [
        ('numpy', (1,), (2,)),
        ('opencv-python', (4,), (4, 12)),
        ('setuptools', (64,), (70,)),
    ],
}
each_stack = pytest.mark.parametrize('stack', STACKS)


def normalise(name):
    return re.sub(r'[._]', '-', name.lower())


def numbers(version):
    return tuple(map(int, version.split('.')))


def read_pins(*names):
    """Return {normalised name: version} of requirement files; any line but a pin is an error."""
    pins = {}
    for name in names:
        for line in (ROOT / 'requirements' / name).read_text().splitlines():
            line = line.partition('#')[0].strip()
            if line:
                match = re.fullmatch(r'([\w.-]+)==([\w.]+)(?: ; python_version < "3.11")?', line)
                assert match, f'{name}: {line!r} is no exact pin'
                key = normalise(match[1])
                assert pins.get(key, match[2]) == match[2], f'{key} is pinned twice, differently'
                pins[key] = match[2]
    return pins


PINS = {s: read_pins(f'{s}.txt', f'{s}-torch.txt', f'{s}-mmcv.txt', 'dev.txt') for s in STACKS}


def libraries(stack):
    """Return {name: version} of what the doctor installs in a stack, from its exact pins."""
    found = (requirements[STACKS.index(stack)] for requirements in TRIED.values())
    return dict(requirement.split('==') for requirement in found if '==' in requirement)


def table_cells(text, heading):
    """Return the two cells beside a heading in the table of both stacks."""
    return re.search(rf'^\| {re.escape(heading)} \| (.*) \| (.*) \|$', text, re.MULTILINE).groups()


@each_stack
def test_doctor_installs_the_pinned_versions(stack):
    assert len(libraries(stack)) == len(TRIED) - 1
    assert libraries(stack).items() <= PINS[stack].items()
    setuptools = TRIED['pkg_resources'][STACKS.index(stack)]
    bounds = dict(re.findall(r'([<>]=?)(\d+)', setuptools))
    assert int(bounds.get('>=', 0)) <= numbers(PINS[stack]['setuptools'])[0] < int(bounds['<'])


def test_doctor_knows_the_libraries_of_the_package():
    assert facts.LIBRARIES == config.LIBRARIES


@each_stack
def test_pins_lie_between_the_bounds_that_are_known(stack):
    for name, low, high in BOUNDS[stack]:
        version = PINS[stack][name]
        assert low <= numbers(version) < high, f'{name}=={version}'


def test_no_lock_holds_libraries_of_the_other_stack():
    for stack, other in (STACKS, STACKS[::-1]):
        theirs = set(libraries(other)) - {'torch', 'torchvision'}
        assert theirs and not theirs & set(PINS[stack])


def read_extras():
    """Return {extra: [(normalised name, lowest version)]} of setup.py."""
    calls = [n for n in ast.walk(ast.parse((ROOT / 'setup.py').read_text())) if type(n) is ast.Call]
    keywords = {k.arg: k.value for call in calls for k in call.keywords}
    extras = ast.literal_eval(keywords['extras_require'])
    return {
        extra: [(normalise(name), version) for name, version in (w.split('>=') for w in words)]
        for extra, words in extras.items()
    }


@each_stack
def test_extra_of_a_stack_names_its_libraries_from_the_pinned_versions_on(stack):
    expected = {k: v for k, v in libraries(stack).items() if k not in ('torch', 'torchvision')}
    assert dict(read_extras()[stack]) == expected


@each_stack
def test_other_extras_have_lower_bounds_that_the_pins_keep(stack):
    for extra in ('demo', 'safetensors', 'weights', 'cam', 'export', 'dev'):
        for name, lowest in read_extras()[extra]:
            assert numbers(PINS[stack][name]) >= numbers(lowest), name


def test_install_page_names_the_pinned_versions():
    text = (ROOT / 'docs' / 'install.md').read_text()
    rows = (table_cells(text, heading) for heading in ('torch', 'distributions'))
    for stack, torch, distributions in zip(STACKS, *rows, strict=True):
        versions = libraries(stack)
        assert versions.pop('torch') == torch
        del versions['torchvision']
        assert set(distributions.split(', ')) == {f'{k} {v}' for k, v in versions.items()}


def test_install_page_names_the_files_and_versions_of_python_of_each_stack():
    text = (ROOT / 'docs' / 'install.md').read_text()
    rows = [table_cells(text, heading) for heading in ('lock files', 'Python', 'mim')]
    for stack, files, pythons, mim in zip(STACKS, *rows, strict=True):
        assert re.findall(r'[\w-]+\.txt', files) == [
            f'{stack}{p}.txt' for p in ('', '-torch', '-mmcv')
        ]
        accepted = environment.STACKS[stack].pythons
        assert re.findall(r'3\.\d+', pythons) == ['{}.{}'.format(*version) for version in accepted]
        assert mim in libraries(stack)


@pytest.mark.parametrize('name', ['ruff', 'codespell'])
def test_hooks_have_the_revisions_of_the_pins(name):
    text = (ROOT / '.pre-commit-config.yaml').read_text()
    revision = re.search(rf'/{name}(?:-pre-commit)?\n\s+rev: v(\S+)', text)[1]
    assert revision == PINS['onedl'][name]


@pytest.mark.parametrize(
    ('name', 'fork'), [('mmdet', 'onedl-mmdetection'), ('mmsegmentation', 'onedl-mmsegmentation')]
)
def test_transitional_versions_equal_those_of_the_fork(name, fork):
    text = (ROOT / 'tools/transitional' / name / 'pyproject.toml').read_text()
    assert re.search(r"^version = '(.*)'", text, re.MULTILINE)[1] == PINS['onedl'][fork]


def test_the_audit_asks_about_every_pin_and_takes_no_answer_for_an_error():
    command = ['make', '--dry-run', 'audit']
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    asked = re.findall(r'pip-audit (.*?);', said)
    assert len(asked) == 2 and all('--strict' in words for words in asked)
    files = [set(re.findall(r'-r requirements/(\S+)', words)) for words in asked]
    assert files[0] | files[1] == {p.name for p in (ROOT / 'requirements').glob('*.txt')}
    for stack, own in zip(STACKS, files, strict=True):
        shared = read_pins('audit.txt').items() & PINS[stack].items()
        assert {'requests', 'rich', 'urllib3'} <= dict(shared).keys()
        assert {*PINS[stack]} == {*read_pins(*(own - {'audit.txt'}))}


@only_made
def test_the_environment_is_what_its_lock_says():
    pins = dict(PINS[MADE_BY_SETUP])
    del pins['pip']  # upgrading it harms nothing
    if sys.version_info >= (3, 11):
        del pins['exceptiongroup']
        pins.pop('tomli', None)
    found = {name: importlib.metadata.version(name).partition('+')[0] for name in pins}
    assert found == pins
