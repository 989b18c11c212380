"""The doctor: each broken state gives its one diagnosis and the command that fixes it."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from contnet_mm.doctor import BAD, examine, facts
from contnet_mm.doctor.commands import OPENMMLAB, TRIED
from contnet_mm.doctor.diagnosis import STATUSES
from contnet_mm.doctor.facts import LIBRARIES, PROBED, WATCHED, Distribution, Facts
from tests.helpers import ROOT, run_python, run_tool

TOOL = ROOT / 'tools' / 'doctor.py'
OTHERS = {
    'onedl': [('numpy', '2.2.6'), ('opencv-python', '4.12.0.88'), ('setuptools', '81.0.0')],
    'openmmlab': [('numpy', '1.26.4'), ('opencv-python', '4.11.0.86'), ('setuptools', '69.5.1')],
}
MODULE = {'opencv-python': 'cv2', 'setuptools': 'pkg_resources'}
ALL_WELL = {
    'torch': {'cuda': '12.1', 'archs': ['sm_80', 'sm_90'], 'gpus': [], 'driver': 'Found no driver'},
    **{name: {} for name in PROBED if name != 'torch'},
}


def well(stack='onedl'):
    """Return facts with which nothing is wrong."""
    found = [(name, version, module) for module, (name, version) in TRIED[stack].items()]
    found += [(name, version, MODULE.get(name, name)) for name, version in OTHERS[stack]]
    distributions = [Distribution(name, version, (module,)) for name, version, module in found]
    distributions.append(Distribution('contnet-mm', '0.1.0', ('contnet_mm',)))
    return Facts(
        python=(3, 11, 7),
        prefix='/env',
        distributions=tuple(distributions),
        origins={name: f'/env/site-packages/{name}/__init__.py' for name in WATCHED},
        mim='/env/bin/mim',
        scripts='/env/bin',
        tools=str(ROOT / 'tools'),
        probes=ALL_WELL,
    )


def with_version(state, module, version):
    dists = (d._replace(version=version) if module in d.owns else d for d in state.distributions)
    return replace(state, distributions=tuple(dists))


def without(state, *modules, files=True):
    """Take away distributions, and the files they brought."""
    dists = tuple(d for d in state.distributions if not set(modules) & set(d.owns))
    state = replace(state, distributions=dists)
    if files:
        state = replace(state, origins={**state.origins, **dict.fromkeys(modules, '')})
        state = replace(state, probes={k: v for k, v in state.probes.items() if k not in modules})
    return state


def with_distribution(state, name, version, *owns):
    return replace(state, distributions=(*state.distributions, Distribution(name, version, owns)))


def with_answer(state, probe, **answers):
    probes = {**state.probes, probe: {**state.probes.get(probe, {}), **answers}}
    return replace(state, probes=probes)


def swapped(state, module, stack):
    """Put another stack's distribution in place of a library's."""
    return with_distribution(without(state, module, files=False), *TRIED[stack][module], module)


def bad(state):
    return [(f.status, f.about) for f in examine(state) if f.status in BAD]


FORK, ORIGINAL = well(), well('openmmlab')
HOPPER = {'gpus': [['H100', [9, 0]]], 'driver': None}
OPS = "ModuleNotFoundError: No module named 'mmcv._ext'"
REFUSED = 'AssertionError: MMCV==2.2.0 is used but incompatible.'
# name: (state, the diagnosis, part of its command)
BROKEN = {
    'old Python': (replace(FORK, python=(3, 8, 1)), 'problem Python', 'python3.11 -m venv'),
    'no pip': (without(FORK, 'pip'), 'problem pip', 'python -m ensurepip'),
    'torch missing': (
        replace(without(FORK, 'torch'), probes={}),
        'problem torch',
        'pip install torch==2.11.0 torchvision==0.26.0',
    ),
    'torch does not import': (
        replace(FORK, probes={'torch': {'import': 'OSError: libc10.so'}}),
        'problem torch',
        'pip install --force-reinstall --no-deps torch==2.11.0',
    ),
    'torch too old': (
        with_version(with_version(ORIGINAL, 'torch', '2.0.1'), 'torchvision', '0.15.1'),
        'problem torch',
        'pip install torch==2.1.2 torchvision==0.16.2',
    ),
    'torchvision of another torch': (
        with_version(FORK, 'torchvision', '0.25.0'),
        'problem torchvision',
        'torchvision==0.26.0',
    ),
    'torchvision of another torch, untried versions': (
        with_version(FORK, 'torch', '2.4.1+cu121'),
        'problem torchvision',
        'torchvision==0.19.1',
    ),
    'torchvision from another index': (
        with_answer(FORK, 'torch', torchvision='RuntimeError: operator nms does not exist'),
        'problem torchvision',
        '--no-deps torch==2.11.0 torchvision==0.26.0',
    ),
    'torchvision missing': (without(FORK, 'torchvision'), 'problem torchvision', '==0.26.0'),
    'numpy 2 beside an old torch': (
        with_version(ORIGINAL, 'numpy', '2.2.6'),
        'problem numpy',
        "pip install 'numpy<2' 'opencv-python<4.12'",
    ),
    'numpy 2 beside the original libraries': (
        with_version(
            with_version(with_version(ORIGINAL, 'numpy', '2.2.6'), 'torch', '2.4.1'),
            'torchvision',
            '0.19.1',
        ),
        'warning numpy',
        "'numpy<2'",
    ),
    'numpy fails': (
        with_answer(FORK, 'torch', numpy='RuntimeError: Numpy is not available'),
        'problem numpy',
        'numpy==2.2.6',
    ),
    'numpy missing': (without(ORIGINAL, 'numpy'), 'problem numpy', "'numpy<2'"),
    'no pkg_resources': (
        replace(
            with_version(ORIGINAL, 'pkg_resources', '82.0.0'),
            origins={**ORIGINAL.origins, 'pkg_resources': ''},
        ),
        'problem setuptools',
        "pip install 'setuptools<70'",
    ),
    'opencv missing': (without(ORIGINAL, 'cv2'), 'problem opencv', "'opencv-python<4.12'"),
    'opencv without libGL': (
        with_answer(FORK, 'cv2', **{'import': 'ImportError: libGL.so.1: cannot open'}),
        'problem opencv',
        'uninstall -y opencv-python && python -m pip install --no-deps '
        'opencv-python-headless==4.12.0.88',
    ),
    'two opencvs': (
        with_distribution(FORK, 'opencv-python-headless', '4.13.0.90', 'cv2'),
        'warning opencv',
        '--no-deps opencv-python==4.13.0.90',
    ),
    'driver too old': (
        with_answer(FORK, 'torch', driver='RuntimeError: The NVIDIA driver is too old (12020).'),
        'problem GPU',
        'ubuntu-drivers install',
    ),
    'driver missing': (replace(FORK, has_gpu=True), 'warning GPU', 'ubuntu-drivers install'),
    'torch without CUDA beside a GPU': (
        with_version(
            replace(with_answer(FORK, 'torch', cuda=None), has_gpu=True), 'torch', '2.11.0+cpu'
        ),
        'warning GPU',
        '--no-deps torch==2.11.0 torchvision==0.26.0',
    ),
    'GPU newer than the build': (
        with_answer(ORIGINAL, 'torch', gpus=[['B200', [10, 0]]], driver=None),
        'problem GPU',
        'torch==2.11.0',
    ),
    'GPU older than the build': (
        with_answer(FORK, 'torch', gpus=[['V100', [7, 0]]], driver=None),
        'problem GPU',
        'torch==2.1.2',
    ),
    'mmengine owned twice': (
        with_distribution(FORK, 'mmengine', '0.10.7', 'mmengine'),
        'problem mmengine',
        'pip uninstall -y onedl-mmengine mmengine && python -m pip install --force-reinstall '
        '--no-deps onedl-mmengine==0.10.12',
    ),
    'mmcv owned twice': (
        with_distribution(ORIGINAL, 'onedl-mmcv', '2.3.6', 'mmcv'),
        'problem mmcv',
        '--no-cache-dir mmcv==2.1.0',
    ),
    'mmdet without files': (
        replace(FORK, origins={**FORK.origins, 'mmdet': ''}),
        'problem mmdet',
        '--no-deps onedl-mmdetection==3.5.1',
    ),
    'mmdet on the path only': (
        without(FORK, 'mmdet', files=False),
        'warning mmdet',
        '-e /env/site-packages',
    ),
    'mmengine missing': (without(FORK, 'mmengine'), 'problem mmengine', 'onedl-mmengine==0.10.12'),
    'mmcv missing': (without(FORK, 'mmcv'), 'problem mmcv', 'onedl-mmcv==2.3.6'),
    'stacks mixed': (
        swapped(FORK, 'mmdet', 'openmmlab'),
        'problem stack',
        'uninstall -y mmdet && python -m pip install --force-reinstall --no-deps '
        'onedl-mmdetection==3.5.1',
    ),
    'mmcv of the other stack': (
        swapped(ORIGINAL, 'mmcv', 'onedl'),
        'problem stack',
        '--no-cache-dir mmcv==2.1.0',
    ),
    'mmcv that mmdet refuses': (
        with_answer(
            replace(
                with_version(ORIGINAL, 'mmcv', '2.2.0'),
                ranges={'mmdet': {'mmcv': ('2.0.0rc4', '2.2.0'), 'mmengine': ('0.7.1', '1.0.0')}},
            ),
            'mmdet',
            **{'import': REFUSED},
        ),
        'problem mmdet',
        '--no-cache-dir mmcv==2.1.0',
    ),
    'mmengine that mmseg refuses': (
        replace(
            with_version(ORIGINAL, 'mmengine', '0.4.0'),
            ranges={'mmseg': {'mmengine': ('0.5.0', '1.0.0')}},
        ),
        'problem mmseg',
        'mmengine==0.10.7',
    ),
    'mmcv without ops': (
        with_answer(
            with_answer(FORK, 'mmcv', extension=OPS, cpu=OPS), 'mmdet', resolve=OPS, base=None
        ),
        'problem mmcv ops',
        "install 'setuptools>=80,<82' wheel ninja psutil && MMCV_WITH_OPS=1 python -m pip install",
    ),
    'mmcv-lite': (
        with_answer(
            with_distribution(without(ORIGINAL, 'mmcv', files=False), 'mmcv-lite', '2.1.0', 'mmcv'),
            'mmcv',
            extension=OPS,
        ),
        'problem mmcv ops',
        'pip uninstall -y mmcv-lite && ',
    ),
    'ops that compute nonsense': (
        with_answer(FORK, 'mmcv', cpu='RuntimeError: nms keeps [0]'),
        'problem mmcv ops',
        'MMCV_WITH_OPS=1',
    ),
    'ops without CUDA': (
        with_answer(
            with_answer(FORK, 'torch', **HOPPER), 'mmcv', cuda='RuntimeError: not compiled'
        ),
        'problem mmcv ops',
        'MMCV_WITH_OPS=1 FORCE_CUDA=1 ',
    ),
    'mmengine crashes': (
        with_answer(FORK, 'mmengine', **{'import': 'crashes (signal 11)'}),
        'problem mmengine',
        '--no-deps onedl-mmengine==0.10.12',
    ),
    'checkpoints that do not load': (
        with_answer(ORIGINAL, 'mmengine', reload='UnpicklingError: Weights only load failed.'),
        'problem checkpoints',
        'export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1',
    ),
    'mmseg misses a package': (
        with_answer(FORK, 'mmseg', resolve="ModuleNotFoundError: No module named 'ftfy'"),
        'problem mmseg',
        'python -m pip install ftfy',
    ),
    'mmpretrain does not find ConTNet': (
        with_answer(FORK, 'mmpretrain', resolve='LookupError: not in the registry'),
        'problem mmpretrain',
        'onedl-mmpretrain==1.3.6',
    ),
    'fork without the name mmdet': (
        with_answer(FORK, 'mmdet', mim='LookupError: mim finds no unique package'),
        'problem mim train mmdet',
        f'--no-deps {ROOT}/tools/transitional/mmdet',
    ),
    'fork without the name mmsegmentation': (
        with_answer(FORK, 'mmseg', base='ModuleNotFoundError: mmsegmentation is not installed'),
        'problem mmseg::',
        f'--no-deps {ROOT}/tools/transitional/mmsegmentation',
    ),
    'library without its tools': (
        with_answer(ORIGINAL, 'mmdet', mim='LookupError: holds no tools/train.py'),
        'problem mim train mmdet',
        '--force-reinstall --no-deps mmdet==3.3.0',
    ),
    'mim missing': (without(FORK, 'mim'), 'warning mim', 'pip install onedl-mim==0.5.1'),
    'mim of another environment': (
        replace(FORK, mim='/usr/bin/mim'),
        'warning mim',
        'export PATH=/env/bin:$PATH',
    ),
    'contnet_mm missing': (without(FORK, 'contnet_mm'), 'problem contnet_mm', f'-e {ROOT}'),
    'contnet_mm on the path only': (
        without(FORK, 'contnet_mm', files=False),
        'warning contnet_mm',
        f'--no-deps -e {ROOT}',
    ),
    'wheel half removed': (
        replace(
            without(FORK, 'contnet_mm', files=False),
            tools='/env/site-packages/contnet_mm/.mim/tools',
        ),
        'warning contnet_mm',
        'python -m pip install --no-deps contnet_mm-*.whl',
    ),
}


@pytest.mark.parametrize('name', BROKEN)
def test_broken_state_gives_its_finding_alone_with_its_command(name):
    state, expected, command = BROKEN[name]
    (diagnosis,) = (found for found in examine(state) if found.status in BAD)
    assert f'{diagnosis.status} {diagnosis.about}' == expected
    assert command in diagnosis.command


@pytest.mark.parametrize('state', [FORK, ORIGINAL, with_answer(FORK, 'torch', **HOPPER)])
def test_nothing_is_found_where_all_is_well(state):
    diagnoses = examine(state)
    assert bad(state) == []
    abouts = [diagnosis.about for diagnosis in diagnoses if diagnosis.status == 'ok']
    for about in ('torch', 'mmengine', 'mmcv ops', 'mim', 'mim train mmdet', 'contnet_mm'):
        assert about in abouts
    assert {diagnosis.status for diagnosis in diagnoses} <= set(STATUSES)


@pytest.mark.parametrize('library', LIBRARIES)
def test_missing_library_is_a_note_unless_it_is_needed(library):
    state = without(FORK, library)
    assert bad(state) == []
    note = next(found for found in examine(state) if found.about == library)
    assert note.status == 'note' and note.text == 'is missing' and note.command
    assert bad(replace(state, needed=(library,))) == [('problem', library)]


def test_mmcv_is_needed_by_libraries_only():
    alone = without(FORK, 'mmcv', *LIBRARIES)
    assert bad(alone) == []
    assert ('problem', 'mmcv') in bad(replace(alone, needed=('mmseg',)))


def test_stack_is_kept_that_most_libraries_come_from():
    both = ORIGINAL
    for module in ('mmengine', 'mmdet'):
        both = with_distribution(both, *TRIED['onedl'][module], module)
    commands = [found.command for found in examine(both) if found.status in BAD]
    assert [command.split()[-1] for command in commands] == ['mmengine==0.10.7', 'mmdet==3.3.0']


def test_fork_is_kept_where_it_is_a_draw():
    state = swapped(without(FORK, *OPENMMLAB[2:]), 'mmcv', 'openmmlab')
    (diagnosis,) = (found for found in examine(state) if found.about == 'stack')
    assert 'uninstall -y mmcv && ' in diagnosis.command and 'onedl-mmcv==' in diagnosis.command


def test_transitional_distributions_own_nothing():
    state = with_distribution(FORK, 'mmdet', '3.5.1')
    state = with_distribution(state, 'mmsegmentation', '1.4.2')
    assert bad(state) == []
    state = with_answer(state, 'mmdet', mim='LookupError: holds no tools/train.py')
    (diagnosis,) = (found for found in examine(state) if found.status in BAD)
    assert diagnosis.command.endswith(' onedl-mmdetection==3.5.1')


def test_hidden_gpu_is_a_note():
    state = with_answer(FORK, 'torch', driver='RuntimeError: No CUDA GPUs are available')
    assert bad(replace(state, has_gpu=True)) == []


def test_tried_versions_are_those_that_set_up_installs():
    for stack, modules in TRIED.items():
        names = (f'{stack}.txt', f'{stack}-torch.txt', f'{stack}-mmcv.txt')
        text = ''.join((ROOT / 'requirements' / name).read_text() for name in names)
        for name, version in modules.values():
            assert re.search(rf'^{name}=={re.escape(version)}(\s|$)', text, re.MULTILINE), name


# Facts ------------------------------------------------------------------------------------------


def write_distribution(folder, name, version, record='', **files):
    info = folder / f'{name}-{version}.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    (info / 'RECORD').write_text(record)
    for file, text in files.items():
        (info / file.replace('_json', '.json')).write_text(text)


def read(folder):
    found = facts.read_distributions(metadata.distributions(path=[str(folder)]))
    return {dist.name: dist for dist in found}


def test_module_belongs_to_whom_its_init_file_was_recorded_for(tmp_path):
    write_distribution(tmp_path, 'onedl_mmdetection', '3.5.1', 'mmdet/__init__.py,sha256=x,1\n')
    write_distribution(tmp_path, 'mmdet', '3.5.1', 'mm_transitional/__init__.py,,\n')
    write_distribution(tmp_path, 'mmsegmentation', '1.4.2', 'mmseg/transitional.txt,,\n')
    write_distribution(tmp_path, 'other', '1', 'other/mmdet/__init__.py,,\n')
    found = read(tmp_path)
    assert found['onedl-mmdetection'] == Distribution('onedl-mmdetection', '3.5.1', ('mmdet',))
    assert [found[name].owns for name in ('mmdet', 'mmsegmentation', 'other')] == [()] * 3


def test_first_of_two_distributions_of_one_name_counts(tmp_path):
    for folder, version in (('first', '1.0'), ('second', '2.0')):
        write_distribution(tmp_path / folder, 'mmdet', version)
    path = [str(tmp_path / 'first'), str(tmp_path / 'second')]
    (found,) = facts.read_distributions(metadata.distributions(path=path))
    assert found.version == '1.0'


def test_module_installed_in_place_belongs_to_its_folder(tmp_path):
    source = tmp_path / 'with space'
    (source / 'mmdet').mkdir(parents=True)
    (source / 'mmdet' / '__init__.py').touch()
    url = f'{{"dir_info": {{"editable": true}}, "url": "{source.as_uri()}"}}'
    write_distribution(tmp_path / 'site', 'mmdet', '3.3.0', direct_url_json=url)
    write_distribution(tmp_path / 'site', 'broken', '1', direct_url_json='{')
    found = read(tmp_path / 'site')
    assert found['mmdet'] == Distribution('mmdet', '3.3.0', ('mmdet',), str(source))
    assert found['broken'].owns == ()


def test_folder_without_init_file_does_not_count_as_a_module(tmp_path, monkeypatch):
    (tmp_path / 'left_over' / 'models').mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert facts.origin('left_over') == '' == facts.origin('never_heard_of')
    (tmp_path / 'left_over' / '__init__.py').touch()
    assert facts.origin('left_over') == str(tmp_path / 'left_over' / '__init__.py')


@pytest.mark.parametrize(
    'text',
    [
        "mmcv_minimum_version = '2.0.0rc4'\nmmcv_maximum_version = '2.2.0'\n",
        "MMCV_MIN = '2.0.0rc4'\nMMCV_MAX = '2.2.0'\nmmcv_min_version = digit_version(MMCV_MIN)\n",
    ],
)
def test_asserted_versions_are_read_from_the_file_in_either_spelling(tmp_path, text):
    (tmp_path / '__init__.py').write_text(f'{text}mmengine_minimum_version = 1\n')
    assert facts.read_ranges(str(tmp_path / '__init__.py')) == {'mmcv': ('2.0.0rc4', '2.2.0')}


def test_gpu_is_seen_on_the_bus(tmp_path):
    def add(name, vendor, kind):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'vendor').write_text(f'{vendor}\n')
        (tmp_path / name / 'class').write_text(f'{kind}\n')

    assert not facts.has_gpu(tmp_path / 'nowhere')
    add('0', '0x10de', '0x040300')  # the sound of a graphics card
    add('1', '0x8086', '0x030000')  # another maker's
    assert not facts.has_gpu(tmp_path)
    add('2', '0x10de', '0x030200')
    assert facts.has_gpu(tmp_path)


# Probes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('code', 'said'),
    [
        ('import os; os.abort()', 'crashes (signal 6)'),
        ('raise SystemExit("no licence")', 'no licence'),
        ('raise SystemExit(3)', 'ended with status 3'),
        ('print("noise\\ndoctor-says:" + \'{"import": null}\')', None),
    ],
)
def test_probe_that_crashes_is_reported(tmp_path, monkeypatch, code, said):
    (tmp_path / 'probe.py').write_text(code)
    monkeypatch.setattr(facts, 'PROBE', tmp_path / 'probe.py')
    assert facts.run_probe('mmdet') == {'import': said}


def test_probe_that_hangs_is_reported(tmp_path, monkeypatch):
    (tmp_path / 'probe.py').write_text('import time; time.sleep(600)')
    monkeypatch.setattr(facts, 'PROBE', tmp_path / 'probe.py')
    monkeypatch.setattr(facts, 'PROBE_SECONDS', 0.2)
    assert facts.run_probe('mmdet') == {'import': 'no answer within 0.2 s'}


def test_probe_names_why_a_library_does_not_import(tmp_path, monkeypatch):
    (tmp_path / 'mmdet').mkdir()
    (tmp_path / 'mmdet' / '__init__.py').write_text('assert False, "MMCV==9 is incompatible"')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert facts.run_probe('mmdet') == {'import': 'AssertionError: MMCV==9 is incompatible'}


def test_nothing_is_probed_without_torch_but_opencv(monkeypatch):
    monkeypatch.setattr(facts, 'run_probe', lambda name: {'import': f'{name} fails'})
    there = dict.fromkeys(WATCHED, 'file')
    assert list(facts.run_probes({**there, 'torch': ''})) == ['cv2']
    assert list(facts.run_probes(there)) == ['torch', 'cv2']
    monkeypatch.setattr(facts, 'run_probe', lambda name: {'import': None})
    assert list(facts.run_probes({**there, 'mmseg': ''})) == [n for n in PROBED if n != 'mmseg']


# The tool ---------------------------------------------------------------------------------------


def test_tool_runs_in_a_bare_environment_and_says_what_is_missing(tmp_path):
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path], check=True)
    # Not ROOT itself: what a build left there would count as an installed contnet_mm.
    path = tmp_path / 'path'
    path.mkdir()
    (path / 'contnet_mm').symlink_to(ROOT / 'contnet_mm')
    command = [tmp_path / 'bin' / 'python', TOOL]
    environ = {'PYTHONPATH': str(path), 'PATH': '/usr/bin:/bin'}
    result = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert result.returncode == 1 and not result.stderr
    # Where the text wraps depends on the length of the paths in it.
    pattern = r'^(?:problem|warning) +(\w+) (?:.*\n +)+?\$ (.+)'
    problems = re.findall(pattern, result.stdout, re.M)
    names = [name for name, _ in problems]
    assert names == ['pip', 'torch', 'numpy', 'mmengine', 'contnet_mm', 'mim']
    assert all(str(tmp_path / 'bin' / 'python') in command for _, command in problems)
    assert '2 warnings and 4 problems to fix' in result.stdout
    assert re.search(r'^note +mmdet +is missing', result.stdout, re.M)
    assert re.search(r'^note +environment +a bare Python', result.stdout, re.M)


def test_tool_refuses_unknown_libraries():
    result = run_tool('doctor', '--need', 'mmcls')
    assert result.returncode == 2 and "'mmcls'" in result.stderr


@pytest.mark.parametrize('package', ['contnet_mm', 'contnet_mim'])
def test_tool_runs_from_where_a_wheel_puts_it(tmp_path, package):
    shutil.copytree(ROOT / 'contnet_mm' / 'doctor', tmp_path / 'contnet_mm' / 'doctor')
    (tmp_path / package / '.mim' / 'tools').mkdir(parents=True)
    tool = shutil.copy(TOOL, tmp_path / package / '.mim' / 'tools')
    result = run_python(tool, '--help')
    assert result.returncode == 0 and '--need' in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    not all(facts.origin(module) for module in OPENMMLAB), reason='not all libraries are here'
)
def test_nothing_is_found_in_this_environment():
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    result = run_tool('doctor', '--need', *LIBRARIES, PATH=path, CUDA_VISIBLE_DEVICES='')
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'All is well.' in result.stdout
    for library in LIBRARIES:
        assert re.search(rf'^ok +mim train {library} ', result.stdout, re.M)
