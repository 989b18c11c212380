"""The transitional distributions: the original names work beside the fork."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.environment import only_made, only_onedl


@only_onedl
def test_mim_finds_the_scripts_of_mmdet_under_its_short_name():
    from mim.utils import get_installed_path, module_full_name

    assert module_full_name('mmdet') == 'mmdet'
    tools = Path(get_installed_path('mmdet'), 'tools')
    assert (tools / 'test.py').is_file()
    text = subprocess.check_output([sys.executable, tools / 'train.py', '--help'], text=True)
    assert 'usage: train.py' in text
    assert '--auto-scale-lr' in text  # an option of MMDetection's own script


@only_made
@pytest.mark.parametrize(
    'base',
    [
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmseg::pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py',
        'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    ],
)
def test_bases_of_all_three_libraries_resolve(base, tmp_path):
    from mmengine.config import Config

    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {base!r}\n')
    assert Config.fromfile(config).model.backbone.type.startswith('ResNet')
