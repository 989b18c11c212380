"""The doctor: each broken state gives its one diagnosis and the command that fixes it."""

from dataclasses import replace

import pytest

from contnet_mm.doctor import BAD, examine
from contnet_mm.doctor.commands import OPENMMLAB, STACKS, TRIED
from contnet_mm.doctor.diagnosis import STATUSES
from contnet_mm.doctor.facts import LIBRARIES, PROBED, WATCHED, Distribution, Facts
from tests.helpers import ROOT

OTHERS = {
    'onedl': [('numpy', '2.2.6'), ('opencv-python', '4.12.0.88'), ('setuptools', '81.0.0')],
    'openmmlab': [('numpy', '1.26.4'), ('opencv-python', '4.11.0.86'), ('setuptools', '69.5.1')],
}
MODULE = {'opencv-python': 'cv2', 'setuptools': 'pkg_resources'}
ALL_WELL = {
    'torch': {'cuda': '12.1', 'archs': ['sm_80', 'sm_90'], 'gpus': [], 'driver': 'Found no driver'},
    **{name: {} for name in PROBED if name != 'torch'},
}


def pin(module, stack):
    """Return the name and the version of the distribution of a module."""
    return TRIED[module][STACKS.index(stack)].split('==')


def well(stack='onedl'):
    """Return facts with which nothing is wrong."""
    found = [(*pin(module, stack), module) for module in TRIED if module != 'pkg_resources']
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
    return with_distribution(without(state, module, files=False), *pin(module, stack), module)


def bad(state):
    return [(f.status, f.about) for f in examine(state) if f.status in BAD]


FORK, ORIGINAL = well(), well('openmmlab')
HOPPER = {'gpus': [['H100', [9, 0], None]], 'driver': None}
NO_KERNEL = 'AcceleratorError: CUDA error: no kernel image is available for execution'
OPS = "ModuleNotFoundError: No module named 'mmcv._ext'"
REFUSED = 'AssertionError: {} is used but incompatible. Please install {}.'
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
        with_answer(ORIGINAL, 'torch', gpus=[['B200', [10, 0], NO_KERNEL]], driver=None),
        'problem GPU',
        'torch==2.11.0',
    ),
    'GPU older than the build': (
        with_answer(FORK, 'torch', gpus=[['V100', [7, 0], NO_KERNEL]], driver=None),
        'problem GPU',
        'torch==2.1.2',
    ),
    'GPU that does not compute': (
        with_answer(
            with_answer(FORK, 'torch', gpus=[['H100', [9, 0], 'RuntimeError: busy']], driver=None),
            'mmcv',
            cuda='RuntimeError: busy',
        ),
        'problem GPU',
        '',
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
            with_version(ORIGINAL, 'mmcv', '2.2.0'),
            'mmdet',
            **{'import': REFUSED.format('MMCV==2.2.0', 'mmcv>=2.0.0rc4, <2.2.0')},
        ),
        'problem mmdet',
        '--no-cache-dir mmcv==2.1.0',
    ),
    'mmengine that mmseg refuses': (
        with_answer(
            with_version(ORIGINAL, 'mmengine', '0.4.0'),
            'mmseg',
            **{'import': REFUSED.format('MMEngine==0.4.0', 'mmengine>=0.5.0, <1.0.0')},
        ),
        'problem mmseg',
        'mmengine==0.10.7',
    ),
    'mmcv without ops': (
        with_answer(with_answer(FORK, 'mmcv', ops=None, cpu=OPS), 'mmdet', resolve=OPS, base=None),
        'problem mmcv ops',
        f'python -m pip install --no-deps {ROOT}/tools/transitional/mmcv_ops',
    ),
    'mmcv with ops of another torch': (
        with_answer(FORK, 'mmcv', ops='mmcv', cpu='ImportError: undefined symbol'),
        'problem mmcv ops',
        "install 'setuptools>=80,<82' wheel ninja psutil && MMCV_WITH_OPS=1 python -m pip install",
    ),
    'mmcv-lite': (
        with_answer(
            with_distribution(without(ORIGINAL, 'mmcv', files=False), 'mmcv-lite', '2.1.0', 'mmcv'),
            'mmcv',
            cpu=OPS,
        ),
        'problem mmcv ops',
        'pip uninstall -y mmcv-lite && ',
    ),
    'ops that compute nonsense': (
        with_answer(FORK, 'mmcv', ops='mmcv', cpu='RuntimeError: nms keeps [0]'),
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


@pytest.mark.parametrize(
    ('answers', 'status', 'words', 'command'),
    [
        (dict(ops='mmcv', built_for='13.0'), 'ok', 'compiled for the CPU and CUDA 13.0', ''),
        (dict(ops='mmcv', built_for='not available'), 'ok', 'compiled for the CPU alone', ''),
        (dict(ops='torchvision', built_for='13.0'), 'note', "torchvision's", 'MMCV_WITH_OPS=1 '),
    ],
)
def test_kinds_of_working_ops_are_told_apart(answers, status, words, command):
    state = with_answer(FORK, 'mmcv', **answers)
    (found,) = (diagnosis for diagnosis in examine(state) if diagnosis.about == 'mmcv ops')
    assert found.status == status and words in found.text and 'computes on CPU' in found.text
    assert command in found.command if command else not found.command


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
        both = with_distribution(both, *pin(module, 'onedl'), module)
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
