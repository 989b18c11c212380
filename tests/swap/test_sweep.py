"""A sample of the sweep over the libraries' configs, and the tables that it writes."""

import re
import time
from pathlib import Path

import pytest

from contnet_mm.apis.config import read_config
from contnet_mm.swap import plan_swap, sweep
from contnet_mm.swap.sandbox import OddConfigError
from contnet_mm.swap.sweep import Outcome
from contnet_mm.swap.task import TASKS
from contnet_mm.swap.trial.verify import verify_swap
from tests.helpers import ROOT
from tools import sweep_zoo

PAGE = ROOT / 'docs' / 'swap.md'

# By library: each family of backbones, each kind of neck and head, each task.
SAMPLE = [
    'mmdet::faster_rcnn/faster-rcnn_x101-32x4d_fpn_1x_coco.py',
    'mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py',
    'mmdet::res2net/cascade-rcnn_res2net-101_fpn_20e_coco.py',
    'mmdet::resnest/mask-rcnn_s50_fpn_syncbn-backbone+head_ms-1x_coco.py',
    'mmdet::regnet/retinanet_regnetx-800MF_fpn_1x_coco.py',
    'mmdet::hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py',
    'mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py',
    'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    'mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py',
    'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
    'mmdet::rtmdet/rtmdet-ins_s_8xb32-300e_coco.py',
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'mmdet::solov2/solov2-light_r18_fpn_ms-3x_coco.py',
    'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    'mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic.py',
    'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.01-coco.py',
    'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'mmseg::mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py',
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    'mmseg::fastfcn/fastfcn_r50-d32_jpu_enc_4xb2-80k_cityscapes-512x1024.py',
    'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
    'mmpretrain::vgg/vgg11_8xb32_in1k.py',
    'mmpretrain::hrnet/hrnet-w18_4xb32_in1k.py',
    'mmpretrain::mobilenet_v3/mobilenet-v3-small_8xb128_in1k.py',
    'mmpretrain::csra/resnet101-csra_1xb16_voc07-448px.py',
]


@pytest.mark.parametrize('name', SAMPLE)
def test_swapped_config_trains_for_a_step_and_predicts(name):
    config = read_config(name)
    ran = verify_swap(config, plan_swap(config, 'tiny').config)
    # MMDetection's SSD predicts with no backbone.
    predicts = 'one prediction at' in ran or ('/ssd' in name and 'SSDHead' in ran)
    assert ran.startswith('one training step') and predicts


def test_sample_has_every_family_and_every_task():
    families = set()
    for name in SAMPLE:
        model = read_config(name).model
        backbone = (model.get('detector') or model).backbone.type
        families.add(Outcome(name, 'x', backbone.rpartition('.')[2]).family)
    assert families >= set(sweep.FAMILIES)
    assert {sweep.kind_of(read_config(name)) for name in SAMPLE} == set(TASKS)


def test_sweep_tells_what_became_of_each_config():
    names = [
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        'mmdet::fcos/fcos_r101-caffe_fpn_gn-head-1x_coco.py',  # the same but for the backbone
        'mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py',
        'mmdet::qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py',
        'mmdet::common/lsj-100e_coco-detection.py',
    ]
    found = sweep.find_configs('mmdet')
    outcomes = sweep.sweep({name: found[name] for name in names}, jobs=1, seconds=300)
    outcomes = {outcome.name: outcome for outcome in outcomes}
    first, second, hourglass, tracking, data = (outcomes[name] for name in names)
    assert first.status == second.status == sweep.WORKS
    assert 'one training step' in first.reason and (first.twin, second.twin) == ('', names[0])
    assert hourglass.status == sweep.REFUSED and 'strides 4 and 4' in hourglass.reason
    assert (tracking.status, tracking.kind) == (sweep.OTHER, 'tracking')
    assert (data.status, data.kind) == (sweep.OTHER, 'no model')


def test_what_takes_too_long_has_failed(monkeypatch):
    monkeypatch.setattr(sweep, 'read_config', lambda path: None)
    monkeypatch.setattr(sweep, 'plan_swap', lambda config: time.sleep(9))
    found, key = sweep._plan((Path('x'), Outcome('mmdet::x.py', 'detection'), 1))
    assert key is None and found['status'] == sweep.FAILED and 'more than 1 s' in found['reason']


def test_an_odd_value_is_refused_by_the_swap_and_listed_as_a_fault_by_the_sweep(monkeypatch):
    config = read_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    config.model.data_preprocessor.mean = 10**12
    with pytest.raises(OddConfigError, match="reading the config: TypeError: object of type 'int'"):
        plan_swap(config, 'tiny')
    monkeypatch.setattr(sweep, 'read_config', lambda path: config)
    found, key = sweep._plan((Path('x'), Outcome('mmdet::x.py', 'detection'), 60))
    assert (
        key is None and found['status'] == sweep.FAILED and 'reading the config' in found['reason']
    )


def test_a_config_that_does_not_parse_is_refused(tmp_path):
    path = tmp_path / 'x.py'
    path.write_text('_base_ = "missing.py"')
    found, key = sweep._look_at((path, Outcome('mmdet::x.py', ''), 1))
    assert key is None and found['status'] == sweep.REFUSED and 'does not parse' in found['reason']


@pytest.mark.parametrize(
    ('backbone', 'family'),
    [
        ('ResNetV1c', 'ResNet'),
        ('ResNeXt', 'ResNeXt'),
        ('SSDVGG', 'VGG'),
        ('PyramidVisionTransformerV2', 'PVT'),
        ('SwinTransformerV2', 'Swin'),
        ('MobileNetV3', 'MobileNet'),
        ('Darknet', 'any other'),
        ('RepVGG', 'any other'),
    ],
)
def test_backbones_belong_to_families(backbone, family):
    assert Outcome('mmdet::x.py', 'detection', backbone).family == family


OUTCOMES = [
    Outcome('mmdet::a.py', 'detection', 'ResNet', 'works', 'fine'),
    Outcome('mmdet::b.py', 'detection', 'ResNet', 'refused', 'no | way'),
    Outcome('mmdet::bb.py', 'detection', 'ResNet', 'trains', 'but no prediction'),
    Outcome('mmdet::c.py', 'detection', 'Darknet', 'failed', 'a fault'),
    Outcome('mmseg::d.py', 'multimodal'),
    Outcome('mmseg::e.py', sweep.UNREADABLE, status='refused', reason='it does not parse'),
]


def test_tables_count_by_library_and_family_and_list_every_reason():
    families, others, reasons = sweep.make_tables(OUTCOMES).split('\n\n')
    assert families.splitlines()[2:] == [
        '| mmdet | ResNet | 3 | 1 | 1 | 1 | 0 |',
        '| mmdet | any other | 1 | 0 | 0 | 0 | 1 |',
        '| mmseg | not readable | 1 | 0 | 0 | 1 | 0 |',
        '| all | **these families** | 3 | 1 | 1 | 1 | 0 |',
        '| all | **all** | 5 | 1 | 1 | 2 | 1 |',
    ]
    assert others.splitlines()[2:] == ['| mmseg | multimodal | 1 |']
    assert set(reasons.splitlines()[2:]) == {
        '| refused | 1 | no \\| way | `mmdet::b.py` |',
        '| trains | 1 | but no prediction | `mmdet::bb.py` |',
        '| failed | 1 | a fault | `mmdet::c.py` |',
        '| refused | 1 | it does not parse | `mmseg::e.py` |',
    }


def test_outcomes_are_written_as_json(tmp_path):
    sweep.write_outcomes(tmp_path / 'x.json', OUTCOMES[::-1])
    assert sweep.read_outcomes(tmp_path / 'x.json') == OUTCOMES


@pytest.mark.parametrize('text', ['', '[1]', '[{"name": 1}]'])
def test_a_file_that_no_sweep_wrote_is_refused(tmp_path, text):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(ValueError, match='x.json is no JSON file of a sweep'):
        sweep.read_outcomes(tmp_path / 'x.json')


def test_a_library_that_is_not_there_is_named():
    with pytest.raises(ValueError, match='mmnothing is not installed'):
        sweep.find_configs('mmnothing')


def test_page_of_the_repository_has_a_line_for_every_library():
    text = PAGE.read_text()
    table = text.partition('<!-- sweep: begin -->')[2].partition('<!-- sweep: end -->')[0]
    assert all(f'| {library} | ResNet |' in table for library in ('mmdet', 'mmseg', 'mmpretrain'))
    assert '| failed |' not in table.partition('| outcome |')[2]


def test_tool_takes_a_part_of_the_names():
    assert sweep_zoo.make_parser().parse_args(['mmdet::fcos/*']).pattern == 'mmdet::fcos/*'


def test_tool_says_before_it_starts_that_it_lacks_compiled_operations(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sweep_zoo, 'find_ops', lambda: 'torchvision')
    monkeypatch.setattr(sweep_zoo, 'sweep', lambda *_: pytest.fail('the sweep has started'))
    page = tmp_path / 'page.md'
    page.write_text('<!-- sweep: begin -->\n<!-- sweep: end -->\n')
    monkeypatch.setattr('sys.argv', ['sweep_zoo.py', 'mmdet::fcos/*', '--write', str(page)])
    with pytest.raises(SystemExit):
        sweep_zoo.main()
    said = 'mmcv has no compiled operations here.*OPS=mmcv'
    assert re.search(f'not --write: {said}', capsys.readouterr().err)
    monkeypatch.setattr(sweep_zoo, 'sweep', lambda *_: [])
    monkeypatch.setattr('sys.argv', ['sweep_zoo.py', 'mmdet::fcos/*'])
    with pytest.raises(SystemExit) as end:
        sweep_zoo.main()
    assert not end.value.code and re.search(f'NOTE: {said}', capsys.readouterr().err)
