"""The wheel and the sdist: what they carry, and that mim and Python run from the wheel alone."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from contnet_mm.datasets.demo import DemoOptions, make_demo_data
from tests.helpers import ROOT

pytestmark = pytest.mark.slow

DEMO = 'retinanet_contnet-ti_fpn_demo.py'
MIM_FILES = ['model-index.yml', 'dataset-index.yml']
CHECKOUT_ONLY = ['tools/setup_env/*', '*.sh']
NOT_SOURCES = '.*', 'data', 'work_dirs', 'checkpoints', 'build', 'dist', '__pycache__', '*.egg-info'
TWO_ITERATIONS = ['--cfg-options', 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=2']


def is_installed(distribution):
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


only_onedl_mim = pytest.mark.skipif(not is_installed('onedl-mim'), reason='says how onedl-mim is')
only_openmim = pytest.mark.skipif(not is_installed('openmim'), reason='says how openmim is')


def run(*command, cwd, status=0):
    """Run a command with nothing of this process's Python path; return its output."""
    environ = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    words = [str(word) for word in command]
    result = subprocess.run(
        words,
        cwd=cwd,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    )
    assert (result.returncode != 0) == (status != 0), f'{words}\n{result.stdout[-3000:]}'
    return re.sub(r'\x1b\[[0-9;]*m', '', result.stdout)


def pip(*words, cwd):
    options = ['--no-build-isolation', '--no-deps', '--no-index']
    return run(sys.executable, '-m', 'pip', *words, *options, cwd=cwd)


def files_of(folder):
    """Return {path: bytes} of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy of this checkout, so that a build leaves nothing in the real one."""
    folder = tmp_path_factory.mktemp('source') / 'checkout'
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    return folder


@pytest.fixture(scope='module')
def built(checkout, tmp_path_factory):
    """The sdist, the wheel built from it, and the wheel built from the checkout."""
    out = tmp_path_factory.mktemp('dist')
    stale = checkout / 'build' / 'lib' / 'contnet_mim' / '.mim' / 'configs' / 'of_an_older_build.py'
    stale.parent.mkdir(parents=True)
    stale.write_text('')
    cache = checkout / 'tools' / '__pycache__' / 'train.cpython-311.pyc'
    cache.parent.mkdir()
    cache.write_text('')
    before = files_of(checkout)
    code = (
        'import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))'
    )
    name = run(sys.executable, '-c', code, out, cwd=checkout).splitlines()[-1]
    pip('wheel', '-w', out / 'from_checkout', '.', cwd=checkout)
    pip('wheel', '-w', out / 'from_sdist', out / name, cwd=out)
    (from_checkout,) = (out / 'from_checkout').iterdir()
    (from_sdist,) = (out / 'from_sdist').iterdir()
    left = set(files_of(checkout)) - set(before)
    assert not any(path.is_symlink() for path in checkout.rglob('*'))
    assert {path.partition('/')[0] for path in left} <= {'build', 'contnet_mm.egg-info'}
    return out / name, from_sdist, from_checkout


def read_wheel(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def expected_in_mim(checkout):
    found = {name: (checkout / name).read_bytes() for name in MIM_FILES}
    for folder in ('configs', 'tools'):
        for name, content in files_of(checkout / folder).items():
            found[f'{folder}/{name}'] = content
    left_out = [*CHECKOUT_ONLY, '*/__pycache__/*']
    return {k: v for k, v in found.items() if not any(fnmatch(k, p) for p in left_out)}


def test_wheel_carries_configs_tools_and_index_files_for_both_mims(built, checkout):
    wheel = read_wheel(built[2])
    expected = expected_in_mim(checkout)
    assert 'tools/train.py' in expected and f'configs/demo/{DEMO}' in expected
    for folder in ('contnet_mm/.mim/', 'contnet_mim/.mim/'):
        found = {k.removeprefix(folder): v for k, v in wheel.items() if k.startswith(folder)}
        assert found == expected


def test_wheel_carries_every_module_and_nothing_else(built, checkout):
    names = {name for name in read_wheel(built[2]) if '/.mim/' not in name}
    modules = {f'contnet_mm/{name}' for name in files_of(checkout / 'contnet_mm')}
    assert {name for name in names if '.dist-info/' not in name} == modules


def test_wheel_of_the_sdist_is_the_wheel_of_the_checkout(built):
    assert built[1].name == built[2].name
    assert read_wheel(built[1]) == read_wheel(built[2])


def test_sdist_carries_every_source(built, checkout):
    with tarfile.open(built[0]) as archive:
        members = {m.name.partition('/')[2]: m for m in archive.getmembers() if m.isfile()}
        found = {name: archive.extractfile(member).read() for name, member in members.items()}
    left_out = ['build/*', '*.egg-info/*', '*__pycache__*']
    expected = {
        name: content
        for name, content in files_of(checkout).items()
        if not any(fnmatch(name, pattern) for pattern in left_out)
    }
    made = {name for name in found if name in ('PKG-INFO', 'setup.cfg') or '.egg-info/' in name}
    assert {name: content for name, content in found.items() if name not in made} == expected


@pytest.mark.parametrize('missing', MIM_FILES)
def test_without_an_index_file_no_wheel_is_built(checkout, tmp_path, missing):
    shutil.copytree(checkout, tmp_path / 'copy', ignore=shutil.ignore_patterns('build'))
    (tmp_path / 'copy' / missing).unlink()
    code = 'from setuptools import build_meta; build_meta.build_wheel("out")'
    output = run(sys.executable, '-c', code, cwd=tmp_path / 'copy', status=1)
    assert missing in output.splitlines()[-1] and 'No such file' in output


def site_packages_of(python):
    (found,) = python.parents[1].glob('lib/python3*/site-packages')
    return found


def make_environment(folder, what):
    """Make an environment with contnet_mm and, of this process's environment, the libraries.

    Its .pth file leads to them; .pth files over there count no more, so that an editable install
    over there does not either.
    """
    run(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder.parent)
    python = folder / 'bin' / 'python'
    (site_packages_of(python) / 'libraries.pth').write_text(sysconfig.get_path('purelib') + '\n')
    # Named with --python, pip takes what it builds with from there as well.
    pip('--python', python, 'install', '--force-reinstall', *what, cwd=folder.parent)
    return python


@pytest.fixture(scope='module')
def python(built, tmp_path_factory):
    """Python of an environment into which the wheel was installed."""
    return make_environment(tmp_path_factory.mktemp('environment') / 'wheel', [built[2]])


@pytest.fixture(scope='module')
def in_place(checkout, tmp_path_factory):
    """Python of an environment into which the checkout was installed in place."""
    python = make_environment(tmp_path_factory.mktemp('in_place') / 'venv', ['-e', checkout])
    assert not (checkout / 'contnet_mm' / '.mim').exists()
    return python


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """An unrelated folder with a few demo images."""
    folder = tmp_path_factory.mktemp('unrelated')
    make_demo_data(folder / 'data' / 'demo', DemoOptions(num_train=4, num_val=2))
    return folder


@pytest.fixture(scope='module')
def trained(python, folder):
    """What mim says when it trains a config of the wheel by its bare name."""
    options = ['--work-dir', 'work', *TWO_ITERATIONS]
    return run(python, '-m', 'mim', 'train', 'contnet_mm', DEMO, *options, cwd=folder)


def test_the_package_is_the_one_of_the_wheel(python, folder):
    found = run(python, '-c', 'import contnet_mm; print(contnet_mm.__file__)', cwd=folder)
    assert python.parents[1] in Path(found.strip()).parents


def test_mim_trains_a_config_of_the_wheel_by_its_name(python, trained):
    used = re.search(rf'will use (\S+/{DEMO}) instead', trained)[1]
    assert python.parents[1] in Path(used).parents
    assert re.search(r'Epoch\(train\)\s+\[1\]\[2/2\]', trained)


def test_mim_tests_a_config_of_the_wheel_by_its_name(python, folder, trained):
    options = ['--checkpoint', 'work/epoch_1.pth', '--work-dir', 'tested']
    # After two iterations no score reaches the config's threshold.
    options += ['--cfg-options', 'model.test_cfg.score_thr=0.0']
    output = run(python, '-m', 'mim', 'test', 'contnet_mm', DEMO, *options, cwd=folder)
    assert 'Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all' in output


def test_mim_runs_a_tool_of_the_wheel(python, folder):
    # Behind -- since mim keeps --help to itself.
    command = ['mim', 'run', 'contnet_mm', 'make_demo_data', '--', '--help']
    output = run(python, '-m', *command, cwd=folder)
    assert '--digit-height' in output
    assert str(python.parents[1]) in re.search(r'Use the script (\S+) for', output)[1]


def test_mim_searches_the_index_of_the_wheel(python, folder):
    name = 'retinanet_contnet-m_fpn_1x_coco'
    output = run(python, '-m', 'mim', 'search', 'contnet_mm', '--config', name, cwd=folder)
    assert f'config id: {name}' in output
    assert re.search(r'config\s+configs/retinanet/retinanet_contnet', output)  # cut at its width


def test_every_tool_of_the_wheel_runs_from_both_folders(python, folder):
    """A tool that looks for files beside itself finds them from either."""
    site = site_packages_of(python)
    tools = sorted(site.glob('contnet_m*/.mim/tools/*.py'))
    assert len(tools) == 2 * len(list((ROOT / 'tools').glob('*.py')))
    code = (
        'import runpy, sys\n'
        'for tool in sys.argv[1:]:\n'
        '    sys.argv[1:] = ["--help"]\n'
        '    try:\n'
        '        runpy.run_path(tool, run_name="__main__")\n'
        '    except SystemExit as end:\n'
        '        assert not end.code, tool\n'
    )
    output = run(python, '-c', code, *tools, cwd=folder)
    assert output.count('usage: ') == len(tools)


def test_python_trains_tests_and_runs_tools_without_mim(python, folder):
    contnet_mm = [python, '-m', 'contnet_mm']
    output = run(*contnet_mm, 'train', DEMO, '--work-dir', 'again', *TWO_ITERATIONS, cwd=folder)
    assert re.search(r'Epoch\(train\)\s+\[1\]\[2/2\]', output)
    options = ['again/epoch_1.pth', '--cfg-options', 'model.test_cfg.score_thr=0.0']
    output = run(*contnet_mm, 'test', DEMO, *options, cwd=folder)
    assert 'Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all' in output
    assert '--digit-height' in run(*contnet_mm, 'make_demo_data', '--help', cwd=folder)
    assert '  make_demo_data ' in run(*contnet_mm, cwd=folder)


def test_models_are_found_by_name(python, folder):
    code = (
        'import contnet_mm, mmpretrain\n'
        'names = contnet_mm.list_models()\n'
        'print(len(names), contnet_mm.get_model(names[0]).backbone.__class__)\n'
        'contnet_mm.register_mmpretrain()\n'
        'model = mmpretrain.get_model("contnet-ti_8xb32_in1k")\n'
        'print(model._config.filename, model.backbone.__class__)\n'
    )
    output = run(python, '-c', code, cwd=folder)
    assert output.count("<class 'contnet_mm.models.contnet.ConTNet'>") == 2
    configs = [*(ROOT / 'configs').glob('[!_]*/*.py')]
    assert f'{len(configs)} <class' in output
    assert str(site_packages_of(python) / 'contnet_mm' / '.mim' / 'configs') in output


def test_processes_of_a_launcher_reach_the_library(python, folder):
    train = site_packages_of(python) / 'contnet_mm' / '.mim' / 'tools' / 'train.py'
    launch = [python, '-m', 'torch.distributed.launch', '--nproc_per_node=2', '--master_port=29871']
    output = run(*launch, train, DEMO, '--launcher', 'pytorch', '--help', cwd=folder)
    assert output.count('Train a detector') == 2


@only_onedl_mim
def test_onedl_mim_trains_and_runs_tools_in_a_checkout_by_path(in_place, checkout, folder):
    config = checkout / 'configs' / 'demo' / DEMO
    options = ['--work-dir', 'in_place', *TWO_ITERATIONS]
    output = run(in_place, '-m', 'mim', 'train', 'contnet_mm', config, *options, cwd=folder)
    assert str(checkout / 'tools' / 'train.py') in output
    assert re.search(r'Epoch\(train\)\s+\[1\]\[2/2\]', output)
    command = ['mim', 'run', 'contnet_mm', 'make_demo_data', '--', '--help']
    assert '--digit-height' in run(in_place, '-m', *command, cwd=folder)


@only_openmim
def test_openmim_does_not_find_a_checkout(in_place, checkout, folder):
    """docs/install.md says so; when this fails, correct the table there."""
    config = checkout / 'configs' / 'demo' / DEMO
    output = run(in_place, '-m', 'mim', 'train', 'contnet_mm', config, cwd=folder, status=1)
    assert "contnet_mm/tools/train.py': [Errno 2] No such file or directory" in output


def test_python_trains_in_a_checkout_by_name(in_place, checkout, folder):
    output = run(in_place, '-m', 'contnet_mm', 'train', DEMO, '--help', cwd=folder)
    assert 'Train a detector' in output
    found = run(in_place, '-c', 'import contnet_mm; print(contnet_mm.__file__)', cwd=folder)
    assert found.strip() == str(checkout / 'contnet_mm' / '__init__.py')
