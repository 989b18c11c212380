"""Every config parses from an unrelated folder, fits together, trains and predicts."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

CONFIGS = sorted((Path(__file__).parents[1] / 'configs').rglob('*.py'))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Config.fromfile(request.param)


@pytest.fixture
def detector(config):
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules()
    model = MODELS.build(config.model)
    model.init_weights()
    return model


def test_there_are_configs():
    assert CONFIGS


def test_neck_and_anchors_fit_the_backbone(detector, config):
    backbone = detector.backbone
    assert tuple(detector.neck.in_channels) == backbone.out_channels
    start = detector.neck.start_level
    strides = [stride[0] for stride in detector.bbox_head.prior_generator.strides]
    assert strides[: 4 - start] == list(backbone.out_strides[start:])
    assert len(strides) == detector.neck.num_outs


def test_a_training_step_reaches_every_parameter_and_predictions_come_out(detector):
    from mmdet.testing import demo_mm_inputs

    torch.manual_seed(0)
    classes = detector.bbox_head.num_classes
    # Two images of different odd sizes: the preprocessor pads them to one.
    shapes = [(3, 97, 131), (3, 64, 90)]
    data = demo_mm_inputs(2, shapes, num_items=[3, 2], num_classes=classes)
    detector.train()
    losses = detector.forward(**detector.data_preprocessor(data, True), mode='loss')
    total, _ = detector.parse_losses(losses)
    assert total.isfinite()
    total.backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    detector.eval()
    with torch.no_grad():
        packed = detector.data_preprocessor(data, False)
        predictions = detector.forward(**packed, mode='predict')
        raw = detector.forward(**packed, mode='tensor')
    assert len(predictions) == 2 and all('bboxes' in p.pred_instances for p in predictions)
    assert all(x.isfinite().all() for outs in raw for x in outs)
