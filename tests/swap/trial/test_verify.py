"""Configs that fit together verify; those that do not are refused with the step that failed."""

import copy
import logging
import random
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from torch import nn

from contnet_mm import ConTNet
from contnet_mm.apis.config import read_config
from contnet_mm.swap.edit import SwapError, walk
from contnet_mm.swap.sandbox import MissingDependencyError, RunError, sandbox
from contnet_mm.swap.task import type_name
from contnet_mm.swap.trial import verify as module
from contnet_mm.swap.trial.samples import image_sizes, make_batch
from contnet_mm.swap.trial.shrink import make_small
from contnet_mm.swap.trial.verify import (
    OriginalFailsTooError,
    PredictError,
    build,
    verify,
    verify_swap,
)
from tests.helpers import ROOT

FOLDER = ROOT / 'configs' / 'demo'
DETECTOR = 'retinanet_contnet-ti_fpn_demo.py'
SEGMENTOR = 'pspnet_contnet-ti-d8_demo-cityscapes.py'
CLASSIFIER = 'contnet-ti_demo-imagenet.py'


@pytest.fixture
def detector():
    return Config.fromfile(FOLDER / DETECTOR)


@pytest.fixture
def segmentor():
    return Config.fromfile(FOLDER / SEGMENTOR)


@pytest.fixture
def classifier():
    return Config.fromfile(FOLDER / CLASSIFIER)


@pytest.mark.parametrize(
    ('name', 'size'), [(DETECTOR, '97x131'), (SEGMENTOR, '\\d+x\\d+'), (CLASSIFIER, '64x64')]
)
def test_our_configs_verify_at_a_small_size(name, size):
    line = verify(Config.fromfile(FOLDER / name))
    assert re.fullmatch(rf'one training step \(loss [\d.]+\) and one prediction at {size}', line)


# Each takes a kind of truth, or a way to be built, of its own.
ZOO = [
    'mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py',  # proposals
    'mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py',  # a teacher
    'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
    'mmdet::tood/tood_r50_fpn_1x_coco.py',  # the epoch; codespell:ignore tood
    'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py',  # the border
    'mmdet::yolact/yolact_r50_1xb8-55e_coco.py',  # masks
    'mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py',  # stuff
    'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',  # stuff with boxes
    'mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',  # edges, made by the head
    'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',  # edges, given
    'mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py',  # a cascade
    'mmpretrain::vgg/vgg16_8xb16_voc.py',  # several labels
    'mmpretrain::resnet/resnet50_8xb32-mixup_in1k.py',  # soft labels
    'mmpretrain::lenet/lenet5_mnist.py',  # grey images
]


@pytest.mark.parametrize('name', ZOO)
def test_models_of_the_zoo_verify_with_their_own_backbones(name):
    assert 'one prediction' in verify(read_config(name))


def test_channels_that_do_not_fit_are_refused(detector):
    detector.model.neck.in_channels[-1] += 1
    with pytest.raises(SwapError, match='computing the loss: RuntimeError: .*channels'):
        verify(detector)


def test_a_parameter_of_the_backbone_without_gradient_is_refused(segmentor):
    segmentor.model.backbone.out_indices = (0, 1, 2, 3)
    for head in (segmentor.model.decode_head, segmentor.model.auxiliary_head):
        head.update(in_index=2, in_channels=384)
    with pytest.raises(SwapError, match=r'backbone\.stages\.\S+ gets none; .*out_indices'):
        verify(segmentor)


def test_a_loss_that_is_not_finite_is_refused_by_its_name(detector):
    detector.model.bbox_head.loss_bbox.loss_weight = float('nan')
    with pytest.raises(SwapError, match='computing the loss: loss, loss_bbox is not finite'):
        verify(detector)


def test_a_gradient_that_is_not_finite_is_refused():
    model = nn.Module()
    model.backbone = nn.Linear(1, 1)
    model.backbone(torch.ones(1, 1)).sum().backward()
    module.check_gradients(model)
    model.backbone.weight.grad.fill_(float('inf'))
    with pytest.raises(SwapError, match=r'that of backbone\.weight is not finite'):
        module.check_gradients(model)


@pytest.mark.parametrize(('value', 'fits'), [(1.0, True), (float('nan'), False)])
def test_a_prediction_that_is_not_finite_is_refused(classifier, value, fits):
    small = make_small(classifier)
    with sandbox('mmpretrain'):
        model = build(small)
        nn.init.constant_(model.head.fc.bias, value)
        batch = make_batch(small, model)
        if fits:
            assert all(len(one.pred_score) == 10 for one in module.predict(model, batch))
        else:
            with pytest.raises(SwapError, match='predicting: pred_score is not finite'):
                module.predict(model, batch)


@pytest.mark.parametrize(
    ('old', 'new', 'expected'),
    [
        (None, None, 'fine'),
        (None, SwapError('broken'), SwapError),
        (SwapError('other'), SwapError('broken'), SwapError),
        (SwapError('broken'), SwapError('broken'), OriginalFailsTooError),
        (None, PredictError('no op', 'one step', True), 'one step, but no prediction.*: no op'),
        (None, PredictError('no op', 'one step', False), PredictError),
        (
            PredictError('no op', 'another step', False),
            PredictError('no op', 'one step', False),
            'one step, but no prediction, nor with the old backbone: no op',
        ),
        (None, MissingDependencyError('no timm'), MissingDependencyError),
    ],
)
def test_a_failure_is_compared_with_that_of_the_config_before(monkeypatch, old, new, expected):
    def answer(config):
        if isinstance(config, Exception):
            raise config
        return 'fine'

    monkeypatch.setattr(module, 'verify', answer)
    if isinstance(expected, str):
        assert re.fullmatch(expected, verify_swap(old, new))
    else:
        with pytest.raises(expected) as caught:
            verify_swap(old, new)
        assert type(caught.value) is expected


def test_a_model_that_does_not_predict_says_that_it_trains(classifier, monkeypatch):
    def fail(*args):
        raise SwapError('no operation')

    monkeypatch.setattr(module, 'predict', fail)
    with pytest.raises(PredictError, match='no operation') as caught:
        verify(classifier)
    assert caught.value.done.startswith('one training step') and not caught.value.missing


def test_a_frozen_backbone_needs_no_gradient(classifier):
    classifier.model.backbone.frozen_stages = 4
    assert 'one training step' in verify(classifier)


def test_an_argument_that_is_not_known_is_refused(detector):
    detector.model.backbone.depth = 50
    with pytest.raises(SwapError, match='building the model: .*depth'):
        verify(detector)


@pytest.mark.parametrize('change', [dict(type='NoSuchOptimizer'), dict(speed=1)])
def test_an_optimizer_that_cannot_be_built_is_refused(detector, change):
    detector.optim_wrapper.optimizer.update(change)
    kind = detector.optim_wrapper.optimizer.type
    with pytest.raises(SwapError, match=f'building the optimizer {kind}: '):
        verify(detector)


def test_other_kinds_are_refused():
    config = read_config('mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py')
    with pytest.raises(SwapError, match='no samples are known for self-supervised'):
        verify(config)


class NeedsFancy(nn.Module):
    def __init__(self, **kwargs):
        import fancy_ops_of_nobody  # noqa: F401


def test_a_missing_package_is_told_from_other_failures(detector):
    detector.model.neck = dict(type=NeedsFancy)
    with pytest.raises(MissingDependencyError, match='pip install fancy_ops_of_nobody'):
        verify(detector)


def test_what_does_not_run_on_small_images_gets_larger_ones(detector, monkeypatch):
    tried = []

    def train_step(model, batch, optimizer):
        tried.append(batch['inputs'][0].shape[1:])
        if len(tried) == 1:
            raise RunError('too small')
        return 1.0

    monkeypatch.setattr(module, 'train_step', train_step)
    assert verify(detector).endswith('at 291x393')
    assert tried == [(97, 131), (291, 393)]


def test_weights_on_the_disk_are_loaded_and_missing_ones_are_not_missed(classifier, tmp_path):
    path = tmp_path / 'weights.pth'
    net = ConTNet('tiny', out_indices=(3,))
    nn.init.constant_(net.stem.conv.weight, 0.125)
    classifier.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    assert make_small(classifier).model.backbone.init_cfg is None
    torch.save(net.state_dict(), path)
    with sandbox('mmpretrain'):
        model = build(make_small(classifier))
    assert (model.backbone.stem.conv.weight == 0.125).all()
    torch.save(ConTNet('small').state_dict(), path)
    with pytest.raises(SwapError, match='initialising the weights: .*does not fit'):
        verify(classifier)


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py',
        'mmdet::lad/lad_r50-paa-r101_fpn_2xb8_coco_1x.py',
        'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py',
        'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        'mmseg::mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py',
    ],
)
def test_nothing_is_left_to_download(name):
    config = read_config(name, import_custom_modules=False)
    before = copy.deepcopy(config)
    model = make_small(config).model
    assert '://' not in str(model)
    assert not [part for _, part in walk(model) if type_name(part) == 'Pretrained']
    assert config.pretty_text == before.pretty_text


def sizes(name, **preprocessor):
    config = read_config(name, import_custom_modules=False)
    config.model.data_preprocessor.update(preprocessor)
    return image_sizes(make_small(config))


def test_images_keep_what_is_left_over_from_the_crop():
    assert sizes('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py') == [(64, 96)] * 2
    assert sizes('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-769x769.py') == [(65, 97)] * 2
    cornernet = 'mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py'
    assert sizes(cornernet) == [(127, 127)] * 2
    assert sizes('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py') == [(97, 131), (64, 90)]
    assert sizes('mmdet::ssd/ssd300_coco.py') == [(300, 300)] * 2


def test_images_padded_to_one_size_are_padded_to_a_divisor_of_it():
    config = read_config('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py')
    assert config.model.data_preprocessor.batch_augments[0].size == (1024, 1024)
    preprocessor = make_small(config).model.data_preprocessor
    assert 'batch_augments' not in preprocessor
    assert preprocessor.pad_size_divisor == 128


def test_truth_and_images_are_within_bounds():
    config = read_config('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py')
    small = make_small(config)
    with sandbox('mmdet'):
        batch = make_batch(small, build(small))
    for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
        height, width = image.shape[1:]
        boxes = sample.gt_instances.bboxes.tensor
        assert (boxes[:, 2:] - boxes[:, :2] > 8).all() and (boxes >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
        masks = sample.gt_instances.masks.masks
        assert masks.shape == (len(boxes), height, width) and masks.any(axis=(1, 2)).all()
        assert sample.gt_instances.labels.max() < 80
        stuff = sample.gt_sem_seg.sem_seg
        assert stuff.shape == (1, height, width)
        assert 80 <= stuff.max() < 133


def test_a_head_for_several_labels_gets_several():
    small = make_small(read_config('mmpretrain::vgg/vgg16_8xb16_voc.py'))
    small.model.backbone.update(type='ResNet', depth=18)
    small.model.backbone.pop('num_classes')
    with sandbox('mmpretrain'):
        batch = make_batch(small, build(small))
    assert [sample.gt_label.tolist() for sample in batch['data_samples']] == [[0, 19], [1, 19]]


def test_the_caller_notices_nothing(detector, capsys):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    text, scope = detector.pretty_text, DefaultScope.get_current_instance()
    logger, hub = MMLogger.get_current_instance(), MessageHub.get_current_instance()
    level = logging.root.manager.disable
    capsys.readouterr()
    with torch.no_grad():
        verify(detector)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    assert detector.pretty_text == text
    assert DefaultScope.get_current_instance() is scope or (
        DefaultScope.get_current_instance().scope_name == scope.scope_name
    )
    assert MMLogger.get_current_instance() is logger
    assert MessageHub.get_current_instance() is hub
    assert logging.root.manager.disable == level
    assert capsys.readouterr() == ('', '')


def test_the_same_config_gives_the_same_loss_whatever_the_seed(classifier):
    first = verify(classifier)
    torch.manual_seed(1)
    assert verify(classifier) == first
