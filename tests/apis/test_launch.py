"""Finding configs and tools by name, and handing over to the library that a config is for."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from contnet_mm.apis import config as api_config
from contnet_mm.apis import launch
from tests.helpers import ROOT, run_script

DEMO = 'retinanet_contnet-ti_fpn_demo.py'
HELP = {'mmdet': 'Train a detector', 'mmseg': 'Train a segmentor', 'mmpretrain': 'Train a model'}


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A folder of configs, seen from an unrelated folder."""
    for name in ('a/one.py', 'a/twin.py', 'b/twin.py'):
        path = tmp_path / 'configs' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("default_scope = 'mmdet'\n")
    (tmp_path / 'unrelated').mkdir()
    monkeypatch.chdir(tmp_path / 'unrelated')
    return tmp_path / 'configs'


@pytest.fixture
def run():
    """Run a script as ``python script arguments``; returns exit status, output and errors."""

    def run(script, *arguments):
        result = run_script(script, *arguments)
        return result.returncode, result.stdout, result.stderr

    return run


def write(folder, text):
    path = folder / 'some_config.py'
    path.write_text(text)
    return str(path)


def test_a_file_is_taken_as_it_is(configs):
    Path('one.py').write_text('')
    assert launch.find_config('one.py', configs) == 'one.py'


@pytest.mark.parametrize('name', ['one.py', 'a/one.py', 'configs/a/one.py', './one.py', 'a/one'])
def test_a_config_is_found_by_the_end_of_its_path(configs, name):
    assert launch.find_config(name, configs) == str(configs / 'a' / 'one.py')


def test_a_name_that_two_configs_have_needs_its_folder(configs):
    with pytest.raises(ValueError, match='name of 2 configs.*configs/a/twin.py, configs/b/twin.py'):
        launch.find_config('twin.py', configs)
    assert launch.find_config('b/twin.py', configs) == str(configs / 'b' / 'twin.py')


@pytest.mark.parametrize('name', ['ones.py', 'b/one.py', 'other/configs/a/one.py', '/a/one.py'])
def test_an_unknown_config_is_an_error_with_what_may_be_meant(configs, name):
    with pytest.raises(ValueError, match='neither a file nor .* did you mean one.py'):
        launch.find_config(name, configs)


def test_an_unknown_config_like_no_other_is_an_error_with_the_folder(configs):
    with pytest.raises(ValueError, match=f'see {configs}'):
        launch.find_config('quite_different.py', configs)


def test_no_two_configs_have_one_name():
    names = [path.name for path in (ROOT / 'configs').rglob('*.py')]
    assert sorted(names) == sorted(set(names)), (
        'mim finds a bare name only where it is the only one'
    )


@pytest.mark.parametrize('library', launch.LIBRARIES)
def test_the_default_scope_chooses_the_library(tmp_path, library):
    (tmp_path / 'base.py').write_text(f"default_scope = '{library}'\n")
    assert launch.library_of(write(tmp_path, "_base_ = 'base.py'\n")) == library


@pytest.mark.parametrize('text', ['', 'default_scope = None\n', "default_scope = 'mmpose'\n"])
def test_a_config_without_a_known_scope_is_an_error_that_names_the_three(tmp_path, text):
    with pytest.raises(ValueError, match='must be one of mmdet, mmseg, mmpretrain'):
        launch.library_of(write(tmp_path, text))


def test_choosing_the_library_imports_nothing_for_the_config(tmp_path):
    imports = "custom_imports = dict(imports=['no_such_module'], allow_failed_imports=False)\n"
    assert launch.library_of(write(tmp_path, imports + "default_scope = 'mmseg'\n")) == 'mmseg'


def test_bases_of_a_library_that_is_not_found_send_to_the_doctor(tmp_path):
    with pytest.raises(ValueError, match='mmyolo is not installed.*contnet_mm doctor'):
        launch.library_of(write(tmp_path, "_base_ = 'mmyolo::_base_/default_runtime.py'\n"))


def test_a_config_of_a_library_that_is_not_found_sends_every_tool_to_the_doctor(tmp_path):
    name = 'mmyolo::_base_/default_runtime.py'
    for asked in (name, write(tmp_path, f'_base_ = {name!r}\n')):
        with pytest.raises(ValueError, match='mmyolo is not installed.*contnet_mm doctor'):
            api_config.read_config(asked)


def test_a_config_is_read_with_its_imports_unless_told_otherwise(tmp_path):
    imports = "custom_imports = dict(imports=['no_such_module'], allow_failed_imports=False)\n"
    config = write(tmp_path, imports + "default_scope = 'mmseg'\n")
    assert api_config.read_config(config, import_custom_modules=False).default_scope == 'mmseg'
    with pytest.raises(ImportError, match='no_such_module'):
        api_config.read_config(config)


def test_the_data_sets_of_a_split_are_those_inside_wrappers():
    inner = [dict(type='A'), dict(type='B')]
    repeated = dict(type='RepeatDataset', times=2, dataset=inner[0])
    both = dict(type='ConcatDataset', datasets=[repeated, inner[1]])
    config = Config(dict(train_dataloader=dict(dataset=both), val_dataloader=None))
    assert api_config.datasets_of(config, 'train') == inner
    assert api_config.datasets_of(config, 'val') == api_config.datasets_of(config, 'test') == []


def test_a_missing_library_or_script_is_an_error_that_names_it(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='no_such_library is not installed'):
        launch.library_script('no_such_library', 'train.py')
    (tmp_path / 'bare_library').mkdir()
    (tmp_path / 'bare_library' / '__init__.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match='bare_library comes without train.py'):
        launch.library_script('bare_library', 'train.py')
    script = tmp_path / 'tools' / 'train.py'  # as in a checkout that is installed in place
    script.parent.mkdir()
    script.write_text('')
    assert launch.library_script('bare_library', 'train.py') == script


def test_only_the_name_of_the_config_changes_on_the_way_to_the_library():
    before, after = ['--local-rank=0'], ['--launcher', 'pytorch', '--cfg-options', 'a.b=c.py']
    script, arguments = launch.script_and_arguments('test.py', [*before, DEMO, 'x.pth', *after])
    assert script == launch.library_script('mmdet', 'test.py')
    assert arguments == [*before, str(ROOT / 'configs' / 'demo' / DEMO), 'x.pth', *after]


def test_arguments_without_a_config_are_an_error_that_repeats_them():
    with pytest.raises(ValueError, match='--amp was given, and no config in it'):
        launch.script_and_arguments('train.py', ['--amp'])


def test_a_script_runs_as_if_python_had_started_it(run, tmp_path):
    (tmp_path / 'beside.py').write_text('VALUE = 7\n')
    script = tmp_path / 'script.py'
    script.write_text(
        'import json, sys\nfrom beside import VALUE\nprint(json.dumps([__name__, VALUE, sys.argv]))'
    )
    start = tmp_path / 'start.py'
    start.write_text(
        'from pathlib import Path\nfrom contnet_mm.apis.launch import run_script\n'
        f'run_script(Path({str(script)!r}), ["--x", "a b"])\n'
    )
    status, out, _ = run(start)
    assert status == 0
    assert json.loads(out) == ['__main__', 7, [str(script), '--x', 'a b']]


@pytest.mark.parametrize('library', launch.LIBRARIES)
def test_train_hands_over_to_the_library_of_the_config(run, tmp_path, library):
    config = write(tmp_path, f"default_scope = '{library}'\n")
    status, out, _ = run(ROOT / 'tools' / 'train.py', config, '--help')
    assert status == 0 and HELP[library] in out


def test_test_hands_over_to_the_library_of_the_config(run):
    status, out, _ = run(ROOT / 'tools' / 'test.py', DEMO, '--help')
    assert status == 0 and 'MMDet test' in out


@pytest.mark.parametrize('task', ['train', 'test'])
def test_help_without_a_config_does_not_make_mim_add_arguments(run, task):
    status, out, _ = run(ROOT / 'tools' / f'{task}.py', '-h')
    assert status == 0 and 'mmdet, mmseg, mmpretrain' in out
    assert '--gpus' not in out, 'mim would pass --gpus on, which no library takes'


def test_train_refuses_an_unknown_config_without_a_traceback(run):
    status, _, error = run(ROOT / 'tools' / 'train.py', 'retinanet_contnet-ti_fpn_demos.py')
    assert status == 2 and f'did you mean {DEMO}' in error


MAIN = ROOT / 'contnet_mm' / '__main__.py'


def test_without_a_tool_the_tools_are_listed(run):
    status, out, _ = run(MAIN)
    assert status == 0
    for path in (ROOT / 'tools').glob('*.py'):
        assert f'  {path.stem} ' in out
    assert 'Makes the demo data:' in out


def test_every_tool_says_what_it_does():
    assert all(launch.list_tools(ROOT / 'tools').values())


def test_an_unknown_tool_is_an_error_with_what_may_be_meant(run):
    status, _, error = run(MAIN, 'make_demo_date')
    assert status == 2 and 'did you mean make_demo_data' in error
    status, _, error = run(MAIN, 'xyz')
    assert status == 2 and 'there are ' in error and 'make_demo_data' in error


def test_a_tool_gets_its_arguments_with_the_config_found(run, tmp_path, monkeypatch):
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    tool = tmp_path / 'tools' / 'echo.py'
    tool.parent.mkdir()
    tool.write_text('"""Echoes."""\nimport json, sys\nprint(json.dumps(sys.argv))\n')
    monkeypatch.setattr(api_config, 'resources', lambda: tmp_path)
    arguments = ['--help', '-x=a.py', 'other.py', 'c.pth']
    status, out, _ = run(MAIN, 'echo', DEMO, *arguments)
    found = str(tmp_path / 'configs' / 'demo' / DEMO)
    assert status == 0 and json.loads(out) == [str(tool), found, *arguments]


def test_resources_are_the_checkout_or_the_folder_of_a_wheel(tmp_path, monkeypatch):
    assert api_config.resources() == ROOT
    package = tmp_path / 'site' / 'contnet_mm'
    package.mkdir(parents=True)
    monkeypatch.setattr(api_config, '__file__', str(package / 'apis' / 'config.py'))
    with pytest.raises(ValueError, match='without configs and tools'):
        api_config.resources()
    for folder in (package.parent, package / '.mim'):  # the wheel's own come first
        for name in ('configs', 'tools'):
            (folder / name).mkdir(parents=True)
        assert api_config.resources() == folder
