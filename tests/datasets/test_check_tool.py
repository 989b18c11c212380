"""tools/check_dataset.py: what it prints and how it ends."""

import pytest

from tests.datasets.helpers import coco_config
from tests.helpers import ROOT, run_tool


def run(*arguments):
    result = run_tool('check_dataset', *arguments)
    return result.returncode, result.stdout + result.stderr


def test_the_script_passes_good_data(demo):
    status, output = run('coco', demo / 'coco', '--all-images')
    assert status == 0 and '0 to fix' in output


def test_the_script_names_damage_and_its_fix(demo):
    for path in (demo / 'coco' / 'train').iterdir():
        path.unlink()
    status, output = run('coco', demo / 'coco')
    assert status == 1 and '1 to fix' in output
    assert 'missing-image (6): listed images are missing' in output and 'and 3 more' in output
    assert 'fix: python -m contnet_mm make_demo_data' in output


def test_the_script_takes_a_config_with_options(demo, tmp_path):
    path = tmp_path / 'my.py'
    coco_config(demo).dump(path)
    option = f'val_dataloader.dataset.dataset.data_prefix.img={demo}/coco/train'
    assert run('--config', path)[0] == 0
    assert run('--config', path, '--cfg-options', option)[0] == 1


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([], '--config CONFIG'),
        (['coco'], 'ROOT'),
        (['voc', 'x'], 'voc'),
        (['coco', 'nowhere'], 'nowhere is no folder'),
        (['--config', 'nowhere.py'], 'nowhere.py is neither a file'),
        (['--config', str(ROOT / 'tools/check_dataset.py')], 'must be one of mmdet'),
        (['--config', 'mmdet::x.py'], 'mmdet::x.py is no config'),
        (['--config', 'mmdet::_base_/default_runtime.py'], 'has none of'),
        (['--config', 'retinanet_contnet-ti_fpn_dem.py'], 'did you mean retinanet_contnet-ti'),
        (['coco', '.', '--config', 'a.py'], 'not both'),
    ],
)
def test_the_script_refuses_wrong_use_with_status_2(arguments, said):
    status, output = run(*arguments)
    assert status == 2 and said in output and 'Traceback' not in output
