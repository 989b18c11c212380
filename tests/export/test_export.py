"""ONNX files of whole models: what they compute, what lies beside them, what is refused."""

import json
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope

from contnet_mm.apis.config import read_config
from contnet_mm.export import check, onnx_file, timing
from contnet_mm.export.build import build_network
from contnet_mm.export.check import Comparison, compare, compute_expected, report
from contnet_mm.export.images import fit, make_reader
from contnet_mm.export.runtimes import Session
from contnet_mm.export.tracing import average_pool
from tests.export.conftest import CASES, SIZE, write_model
from tests.helpers import ROOT, run_tool

DEMO = ROOT / 'configs' / 'demo'


pytestmark = pytest.mark.usefixtures('nothing_stays')


def expect(exported, images):
    """Compute in torch what a file has to give."""
    read = make_reader(exported.network, exported.cfg)
    return [compute_expected(exported.network, read(image)) for image in images]


@pytest.mark.parametrize('name', CASES)
def test_a_file_computes_what_the_library_predicts(name, export, images):
    exported = export(name)
    expected = expect(exported, images)
    found = compare(exported.network, exported.path, expected)
    assert found.passed, report([found], exported.network)
    assert len(found.differences) >= len(expected[0].maps)
    if name in ('retinanet', 'fcos'):
        sizes = {e.pixels.shape[1:] for e in expected}
        assert len(sizes) == 3 and SIZE in sizes  # most are padded
        assert found.alike > 60 and found.ties < found.alike / 10
        dets, labels = (np.concatenate(x) for x in zip(*map(detections, expected), strict=True))
        assert len(set(labels)) > 3 and np.ptp(dets[:, 4]) > 0.1
    if name == 'pspnet':
        labels = np.stack([e.predictions['labels'] for e in expected])
        assert found.alike > 0.99 * labels.size and len(np.unique(labels)) > 3


def detections(expected):
    return expected.predictions['dets'][0], expected.predictions['labels'][0]


@pytest.mark.parametrize('name', CASES)
def test_a_file_with_another_weight_fails(name, export, images, tmp_path):
    exported = export(name)
    model = onnx.load(exported.path)
    weights = [t for t in model.graph.initializer if len(t.dims) == 4 and t.data_type == 1]
    values = onnx.numpy_helper.to_array(weights[0]) * 1.01
    weights[0].CopyFrom(onnx.numpy_helper.from_array(values, weights[0].name))
    onnx.save(model, tmp_path / 'changed.onnx')
    expected = expect(exported, images[:1])
    assert not compare(exported.network, tmp_path / 'changed.onnx', expected).passed


def test_the_classes_of_torch_and_of_the_file_are_compared(export, images):
    exported = export('pspnet')
    (expected,) = expect(exported, images[:1])
    expected.predictions['labels'][:, :3] = 18 - expected.predictions['labels'][:, :3]
    found = compare(exported.network, exported.path, [expected])
    assert found.others > 0 and not found.passed


def predictions(boxes, scores, labels):
    dets = np.concatenate([np.float32(boxes), np.float32(scores)[:, None]], 1)
    return dict(dets=dets[None], labels=np.array([labels]))


BOXES = [[0, 0, 10, 10], [20, 20, 40, 50], [5, 5, 60, 60]]


@pytest.mark.parametrize(
    ('found', 'others', 'ties'),
    [
        ((BOXES, [0.9, 0.5, 0.3], [1, 2, 3]), 0, 0),
        (([BOXES[1], BOXES[0], BOXES[2]], [0.5, 0.9, 0.3], [2, 1, 3]), 0, 0),  # any order
        ((BOXES, [0.9, 0.5, 0.3], [1, 2, 4]), 2, 0),  # a class
        ((BOXES, [0.9, 0.49, 0.3], [1, 2, 3]), 2, 0),  # a score
        (([BOXES[0], BOXES[1], [5, 5, 60, 61]], [0.9, 0.5, 0.3], [1, 2, 3]), 2, 0),  # an edge
        ((BOXES[:2], [0.9, 0.5], [1, 2]), 1, 0),
        ((BOXES + BOXES[:1], [0.9, 0.5, 0.3, 0.9], [1, 2, 3, 1]), 1, 0),  # twice
        ((BOXES + BOXES[:1], [0.9, 0.5, 0.3, 0.05005], [1, 2, 3, 1]), 0, 1),  # at the threshold
        ((np.zeros((0, 4)), [], []), 3, 0),
    ],
)
def test_detections_are_matched_one_by_one(found, others, ties):
    comparison = Comparison('')
    expected = predictions(BOXES, [0.9, 0.5, 0.3], [1, 2, 3])
    check._compare_detections(comparison, expected, predictions(*found), (100, 100), 10, 0.05)
    assert (comparison.others, comparison.ties) == (others, ties)
    assert comparison.passed == (others == 0)


def test_only_the_end_of_a_full_list_is_a_tie():
    for limit, ties in ((3, 2), (4, 0)):
        comparison = Comparison('')
        expected = predictions(BOXES, [0.9, 0.5, 0.3], [1, 2, 3])
        found = predictions([*BOXES[:2], [1, 1, 9, 9]], [0.9, 0.5, 0.3], [1, 2, 3])
        check._compare_detections(comparison, expected, found, (100, 100), limit, 0.05)
        assert (comparison.ties, comparison.others) == (ties, 2 - ties)


def test_what_is_no_number_fails():
    comparison = Comparison('')
    comparison.add('map_0', np.nan)
    assert not comparison.passed


@pytest.mark.parametrize('name', CASES)
def test_the_description_and_the_file_agree(name, export):
    exported = export(name)
    described = json.loads(exported.path.with_suffix('.json').read_text())
    session = Session(exported.path)
    assert [*described['inputs']] == [*session.inputs] == [*exported.network.inputs]
    assert [*described['outputs']] == session.outputs == [*exported.network.outputs]
    assert described['inputs']['image']['shape'] == [1, 3, *CASES[name].size]
    assert described['config'] == f'{name}.py'
    number = {'pspnet': 19, 'classifier': None}.get(name, 10)
    assert number is None or len(described['classes']) == number
    content = exported.path.read_bytes()
    assert str(ROOT).encode() not in content and str(exported.path.parent).encode() not in content


def test_a_larger_image_or_padding_that_a_file_does_not_know_is_refused(export):
    for name, shape in (('retinanet', (3, 65, 96)), ('classifier', (3, 55, 56))):
        with pytest.raises(ValueError, match=f'{shape[1]}x{shape[2]} is given to a file for'):
            Session(export(name).path)(np.zeros(shape, np.uint8))


@pytest.mark.parametrize('shape', [(64, 96), (50, 40), (30, 97), (200, 100), (700, 3)])
def test_an_image_keeps_its_ratio_and_touches_a_side(shape):
    image, (wider, higher) = fit(np.zeros((*shape, 3), np.uint8), SIZE)
    assert image.shape[0] <= SIZE[0] and image.shape[1] <= SIZE[1]
    assert image.shape[0] == SIZE[0] or image.shape[1] == SIZE[1]
    assert wider == image.shape[1] / shape[1] and higher == image.shape[0] / shape[0]
    if min(shape) > 20:
        assert wider == pytest.approx(higher, rel=0.02)


@pytest.mark.parametrize('output_size', [1, 3, (6, 2), (None, 5)])
def test_pooling_by_products_is_adaptive_average_pooling(output_size):
    x = torch.randn(2, 3, 13, 21)
    assert torch.allclose(
        average_pool(x, output_size), F.adaptive_avg_pool2d(x, output_size), atol=1e-6
    )


def test_the_tool_exports_the_backbone_of_a_classifier_and_says_what_differs(
    images, tmp_path, monkeypatch
):
    config, weights = write_model(tmp_path, 'classifier')
    args = (config, weights, '--size', '64x96', '--backbone', '--check', *images)
    result = run_tool('export_onnx', *args)
    assert result.returncode == 0
    text = result.stdout
    assert re.search(r'\| map_0 \| \d\.\de-\d\d \|', text) and 'on 3 images' in text
    beside = tmp_path / 'classifier_backbone.onnx'
    assert beside.with_suffix('.json').is_file() and Session(beside).outputs == ['map_0']
    monkeypatch.setattr(onnx_file, 'make_onnx', lambda _: onnx.load(beside))
    monkeypatch.setattr(check, 'TOLERANCE', 0)
    out = tmp_path / 'new' / 'net.onnx'
    result = run_tool('export_onnx', *args, '-o', out)
    assert result.returncode == 1
    assert out.is_file() and 'more than rounding' in result.stdout


@pytest.mark.parametrize(
    ('name', 'changes', 'size', 'message'),
    [
        (
            'retinanet',
            {'model.data_preprocessor.pad_size_divisor': 32},
            (64, 100),
            '--size 64x100 must be multiples of 32',
        ),
        (
            'retinanet',
            {'model.test_cfg.nms.type': 'soft_nms'},
            SIZE,
            'nms of the model must be type="nms"',
        ),
        ('retinanet', {'model.test_cfg.nms_pre': -1}, SIZE, 'must have nms_pre and max_per_img'),
        (
            'pspnet',
            {'model.test_cfg': dict(mode='slide', crop_size=(64, 64), stride=(42, 42))},
            SIZE,
            'must be at most 64x64, got 64x96',
        ),
    ],
)
def test_a_model_that_would_predict_otherwise_is_refused(name, changes, size, message, tmp_path):
    config, weights = write_model(tmp_path, name)
    cfg = read_config(config)
    cfg.merge_from_dict(changes)
    with pytest.raises(ValueError, match=message):
        build_network(cfg, weights, size)


def test_two_stage_detectors_are_refused_with_a_way_out(tmp_path):
    from mmengine.registry import MODELS

    cfg = read_config(DEMO / 'faster-rcnn_contnet-ti_fpn_demo.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r"FasterRCNN .*MMDeploy.*module=\['contnet_mm'\]"):
        build_network(cfg, tmp_path / 'x.pth', SIZE)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['no.py', 'no.pth', '--size', '56x56'], 'no.py is neither a file'),
        (['x.py', 'no.pth', '--size', '56'], "'56' must be HxW"),
        (['x.py', 'no.pth', '--size', '56x56'], 'no.pth does not exist'),
        (['x.py', 'no.pth', '--size', '56x56', '-o', 'net.pt'], 'must end in .onnx, got net.pt'),
        (
            ['x.py', 'no.pth', '--size', '56x56', '--backbone', '--evaluate'],
            'backbone alone has no',
        ),
    ],
)
def test_the_tool_names_what_is_wrong(args, message, tmp_path):
    (tmp_path / 'x.py').write_text(f'_base_ = {str(DEMO / "contnet-ti_demo-imagenet.py")!r}')
    result = run_tool('export_onnx', *args)
    assert result.returncode == 2
    assert message in ' '.join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ['x.py']


def test_the_python_of_the_docs_finds_what_torch_finds(export, images, tmp_path, capsys):
    exported = export('retinanet')
    for suffix in ('.onnx', '.json'):
        shutil.copy(exported.path.with_suffix(suffix), tmp_path / f'epoch_12{suffix}')
    shutil.copy(images[0], tmp_path / 'photo.jpg')  # of the input's size, so nothing is resized
    (block,) = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/deploy.md').read_text(), re.DOTALL)
    exec(block, names := {})
    (expected,) = expect(exported, images[:1])
    comparison = Comparison('')
    found = {name: names[name] for name in ('dets', 'labels')}
    check._compare_detections(comparison, expected.predictions, found, SIZE, 100, 0.05)
    assert comparison.passed and comparison.alike > 90
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (names['dets'][0, :, 4] >= 0.3).sum() > 2
    label, (left, *_, score) = found['labels'][0][0], found['dets'][0][0]
    assert lines[0].startswith(f'{label} {score:.3f} [{round(float(left))}, ')


@pytest.mark.slow
def test_the_timing_has_a_row_per_way(export, monkeypatch):
    monkeypatch.setattr(timing, 'ROUNDS', 1)
    exported = export('classifier')
    table = timing.time_all(exported.network, exported.path, ['onnxruntime'])
    rows = [line.split('|')[1].split()[0] for line in table.splitlines()[2:]]
    assert rows == ['torch', 'torch', 'onnxruntime'][-2 - onnx_file.HAS_TORCH_EXPORT :]
