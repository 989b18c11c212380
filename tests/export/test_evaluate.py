"""Metrics of a file: where torch's own predictions are the truth, it has to score full marks."""

import json
import shutil

import cv2
import numpy as np
import pytest

from contnet_mm.apis.config import read_config
from contnet_mm.export import run
from contnet_mm.export.check import compute_expected
from contnet_mm.export.evaluate import evaluate_file, evaluate_torch
from contnet_mm.export.images import make_reader
from contnet_mm.export.runtimes import Session

pytestmark = pytest.mark.usefixtures('nothing_stays')


def metrics_of(exported, cfg):
    """Return the metrics in torch and of the file."""
    session = Session(exported.path)
    return evaluate_torch(exported.network, cfg), evaluate_file(exported.network, cfg, session)


def test_detections_are_found_at_their_place_in_the_image(export, images, tmp_path):
    exported = export('retinanet')
    cfg = read_config(exported.config)
    size = exported.network.size
    read = make_reader(exported.network, cfg)
    content = dict(images=[], annotations=[], categories=[])
    content['categories'] = [dict(id=i, name=str(i)) for i in range(10)]
    for i, path in enumerate([images[0], images[2]]):  # tall ones torch sees larger than a file
        height, width = cv2.imread(str(path)).shape[:2]
        content['images'].append(dict(id=i, file_name=path.name, height=height, width=width))
        pixels = read(path)
        scale = np.array([pixels.shape[2] / width, pixels.shape[1] / height] * 2)
        found = compute_expected(exported.network, pixels).predictions
        for det, label in zip(found['dets'][0][:, :4] / scale, found['labels'][0], strict=True):
            left, top, right, bottom = map(float, det)
            box = [left, top, right - left, bottom - top]
            area = box[2] * box[3]
            annotation = dict(image_id=i, category_id=int(label), bbox=box, area=area, iscrowd=0)
            content['annotations'].append(dict(annotation, id=len(content['annotations']) + 1))
    (tmp_path / 'truth.json').write_text(json.dumps(content))
    cfg.test_dataloader.dataset.update(
        data_root='', ann_file='truth.json', data_prefix=dict(img=str(images[0].parent))
    )
    cfg.test_dataloader.dataset.pipeline[1].scale = size[::-1]
    cfg.test_evaluator.ann_file = 'truth.json'
    expected, found = metrics_of(exported, cfg)
    assert found['coco/bbox_mAP'] > 0.99
    assert found == pytest.approx(expected, abs=run.METRIC_TOLERANCE)


def test_classes_of_pixels_are_those_of_torch(export, tmp_path):
    exported = export('pspnet')
    cfg = read_config(exported.config)
    height, width = exported.network.size
    rng = np.random.default_rng(0)
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    read = make_reader(exported.network, cfg)
    for i in range(2):
        picture = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        image = tmp_path / f'images/{i}.png'
        cv2.imwrite(str(image), picture.repeat(4, 0).repeat(4, 1))
        labels = compute_expected(exported.network, read(image)).predictions['labels'][0]
        assert labels.shape == (height, width)
        cv2.imwrite(str(tmp_path / f'labels/{i}.png'), labels.astype(np.uint8))
    cfg.test_dataloader.dataset.update(
        type='BaseSegDataset',
        data_root='',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo=dict(classes=exported.network.classes),
    )
    expected, found = metrics_of(exported, cfg)
    assert expected['mIoU'] == 100 and found['mIoU'] > 99.5


def test_classes_of_images_are_those_of_torch(export, images, tmp_path):
    exported = export('classifier')
    cfg = read_config(exported.config)
    read = make_reader(exported.network, cfg)
    for i in range(10):
        (tmp_path / f'images/{i}').mkdir(parents=True)
    for path in images:
        scores = compute_expected(exported.network, read(path)).predictions['scores']
        shutil.copy(path, tmp_path / f'images/{scores.argmax()}' / path.name)
    cfg.test_dataloader.dataset.update(data_root='', data_prefix='images')
    expected, found = metrics_of(exported, cfg)
    assert expected == found == {'accuracy/top1': 100}


def test_a_config_without_test_data_is_named(export):
    exported = export('classifier')
    cfg = read_config(exported.config)
    cfg.test_evaluator = None
    with pytest.raises(ValueError, match='no test_dataloader or no test_evaluator'):
        evaluate_torch(exported.network, cfg)


@pytest.mark.parametrize(('change', 'passed'), [(0.001, True), (0.003, False)])
def test_the_tool_fails_where_metrics_differ(change, passed, export, monkeypatch, capsys):
    exported = export('retinanet')
    monkeypatch.setattr(run, 'build_network', lambda *_: exported.network)
    monkeypatch.setattr(run, 'write_onnx', lambda _, path, __: path.write_bytes(b''))
    monkeypatch.setattr(run, 'Session', lambda *_: Session(exported.path))
    monkeypatch.setattr(run, 'evaluate_torch', lambda *_: dict(mAP=0.4))
    monkeypatch.setattr(run, 'evaluate_file', lambda *_: dict(mAP=0.4 + change))
    monkeypatch.chdir(exported.path.parent)
    args = (exported.config, 'x.pth', exported.network.size)
    assert (
        run.export_and_report(*args, out=exported.path.with_name('x.onnx'), evaluates=True)
        == passed
    )
    assert f'| mAP | 0.4000 | {0.4 + change:.4f} |' in capsys.readouterr().out
