"""torchvision's operations: installed where mmcv has none; configs that need others are told."""

import importlib.util
import subprocess
import sys
import venv

import pytest
from mmengine.config import Config

from contnet_mm.apis import launch, mmcv_ops
from contnet_mm.apis.config import read_config
from tests.helpers import ROOT, run_tool


def site_packages(environment):
    """Return the folder of packages of a virtual environment."""
    return next(environment.glob('lib/python3*/site-packages'))


@pytest.fixture
def bare(tmp_path):
    """Return an environment whose mmcv has no operations, beside our torchvision and pip."""
    venv.create(tmp_path / 'env', symlinks=True, system_site_packages=False)
    site = site_packages(tmp_path / 'env')
    (site / 'ours.pth').write_text(
        '\n'.join(path for path in sys.path if path.endswith('-packages'))
    )
    (site / 'mmcv').mkdir()
    (site / 'mmcv' / '__init__.py').touch()
    return tmp_path / 'env'


def run(environment, code):
    return subprocess.run(
        [environment / 'bin' / 'python', '-c', code], cwd=ROOT, capture_output=True, text=True
    )


def test_operations_are_installed_once_and_can_be_removed(bare, monkeypatch):
    monkeypatch.setenv('PIP_NO_BUILD_ISOLATION', '0')
    code = 'from contnet_mm.apis.mmcv_ops import *; print(find_ops()); print(install_ops())'
    first, second = run(bare, code), run(bare, code)
    assert first.stdout.splitlines()[0] == 'None', first.stderr
    assert first.stdout.endswith("mmcv has torchvision's operations now\n"), first.stdout
    assert second.stdout == "torchvision\nmmcv has torchvision's operations already\n"
    loads = run(bare, 'import mmcv._ext as e; print(e.get_compiler_version())')
    assert loads.stdout == "none (torchvision's operations)\n", loads.stderr
    words = ('-m', 'pip', 'uninstall', '-y', 'torchvision-ops-for-mmcv')
    subprocess.run([bare / 'bin' / 'python', *words], check=True, capture_output=True)
    assert not (site_packages(bare) / 'mmcv' / '_ext.py').exists()


@pytest.mark.mmcv_ops
def test_compiled_operations_are_left_alone():
    result = run_tool('install_ops')
    assert result.returncode == 2 and 'mmcv has compiled operations' in result.stderr


def test_without_mmcv_there_is_nothing_to_install_into(monkeypatch):
    monkeypatch.setattr(mmcv_ops, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='mmcv is not installed'):
        mmcv_ops.install_ops()


@pytest.fixture
def torchvision_ops(monkeypatch):
    """Return torchvision's operations, in the place of those that mmcv has here."""
    import mmcv.ops  # noqa: F401 (it keeps its own for the tests that follow)

    file = ROOT / 'tools/transitional/mmcv_ops/mmcv/_ext.py'
    spec = importlib.util.spec_from_file_location('mmcv._ext', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, 'mmcv._ext', module)
    monkeypatch.setattr(mmcv_ops, 'find_ops', lambda: mmcv_ops.TORCHVISION)
    return module


CARAFE = 'mmdet::carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py'


@pytest.mark.parametrize(
    ('name', 'operations'),
    [
        (CARAFE, {'carafe_forward', 'carafe_backward'}),
        # Training calls none of these, only the first validation does.
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py', {'softnms'}),
        (
            'mmdet::guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py',
            {'masked_im2col_forward', 'masked_col2im_forward'},
        ),
        ('mmdet::pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py', {'nms_match'}),
        (
            'mmseg::psanet/psanet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
            {'psamask_forward', 'psamask_backward'},
        ),
        ('mmdet::dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py', set()),
        ('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', set()),
        ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', set()),
        ('mmpretrain::resnet/resnet50_8xb32_in1k.py', set()),
    ],
)
def test_operations_that_torchvision_lacks_are_found_in_a_config(torchvision_ops, name, operations):
    assert mmcv_ops.missing_operations(read_config(name)) == sorted(operations)


def test_an_operation_in_the_library_s_own_names_of_classes_is_found(torchvision_ops):
    extractor = dict(type='SingleRoIExtractor', roi_layer=dict(type='RoIPool', output_size=7))
    config = Config(dict(default_scope='mmdet', model=dict(roi_head=[dict(box=extractor)])))
    assert mmcv_ops.missing_operations(config) == ['roi_pool_backward', 'roi_pool_forward']
    config.model.roi_head[0].box.roi_layer.type = 'RoIAlign'
    assert not mmcv_ops.missing_operations(config)


def test_no_family_of_ours_needs_what_torchvision_lacks(torchvision_ops):
    configs = [*ROOT.glob('configs/demo/*.py')]
    assert len(configs) >= 7
    assert not {f.name: m for f in configs if (m := mmcv_ops.missing_operations(read_config(f)))}


def test_a_config_that_needs_more_is_refused_before_its_training_starts(torchvision_ops, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(f'_base_ = {CARAFE!r}\n')
    match = 'config.py calls carafe_backward, carafe_forward of mmcv.*make setup OPS=mmcv'
    with pytest.raises(ValueError, match=match):
        launch.script_and_arguments('train.py', [str(path)])


def test_compiled_operations_train_that_config(monkeypatch, tmp_path):
    monkeypatch.setattr(mmcv_ops, 'find_ops', lambda: mmcv_ops.COMPILED)
    path = tmp_path / 'config.py'
    path.write_text(f'_base_ = {CARAFE!r}\n')
    script, _ = launch.script_and_arguments('train.py', [str(path)])
    assert script.name == 'train.py'
