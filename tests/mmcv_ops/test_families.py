"""Detectors of each family train and predict alike under both kinds of operations."""

from functools import wraps

import pytest
import torch

from contnet_mm.apis.config import read_config
from contnet_mm.swap.sandbox import sandbox
from contnet_mm.swap.trial.samples import make_batch
from contnet_mm.swap.trial.shrink import make_small
from contnet_mm.swap.trial.verify import build, predict, train_step
from tests.mmcv_ops.test_torchvision_ops import OURS, both

TWO_STAGES = {'nms', 'roi_align_forward', 'roi_align_backward'}


@pytest.fixture
def called(monkeypatch):
    """Return the names of torchvision's operations that have been called."""
    names = set()

    def spy(name, function):
        @wraps(function)
        def call(*args, **kwargs):
            names.add(name)
            return function(*args, **kwargs)

        return call

    for name in TWO_STAGES:
        monkeypatch.setattr(OURS, name, spy(name, getattr(OURS, name)))
    return names


@pytest.mark.mmcv_ops
@pytest.mark.parametrize(
    ('family', 'operations'),
    [
        ('retinanet_contnet-ti_fpn', {'nms'}),
        ('fcos_contnet-ti_fpn', {'nms'}),
        ('faster-rcnn_contnet-ti_fpn', TWO_STAGES),
        ('mask-rcnn_contnet-ti_fpn', TWO_STAGES),
    ],
)
def test_losses_weights_and_predictions_are_equal(family, operations, called):
    config = read_config(f'{family}_demo.py')
    test_cfg = config.model.test_cfg.get('rcnn', config.model.test_cfg)
    test_cfg.score_thr = 0.0  # untrained scores are low
    with sandbox('mmdet'):
        model = build(make_small(config))
        batch = make_batch(config, model)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

        def train_and_predict():
            model.load_state_dict(before)
            torch.manual_seed(0)  # which boxes are sampled
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            losses = [torch.tensor(train_step(model, batch, optimizer)) for _ in range(3)]
            found, *_ = predict(model, batch)
            predictions = [value for _, value in sorted(found.pred_instances.items())]
            weights = [tensor.clone() for tensor in model.state_dict().values()]
            return [*predictions, *losses, *weights]

        expected, found = both(train_and_predict)
    assert called == operations
    assert len(expected[0]) > 10, 'there are boxes to compare'
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
