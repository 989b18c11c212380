"""Every config parses from an unrelated folder, fits together, trains and predicts."""

import copy
import re
from functools import cache

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from contnet_mm import ConTNet
from tests.helpers import ROOT, run_python
from tests.synthetic import build_model, make_batch

FOLDER = ROOT / 'configs'
# What lies in _base_ is a part of a config, as in OpenMMLab's libraries.
PATHS = sorted(path for path in FOLDER.rglob('*.py') if '_base_' not in path.parts)
NAMES = [path.stem for path in PATHS]
LETTERS = dict(tiny='ti', small='s', medium='m', base='b')
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


parse_once = cache(Config.fromfile)


def parse(path, tmp_path, monkeypatch):
    """Return a config of one's own, parsed from an unrelated folder."""
    monkeypatch.chdir(tmp_path)
    return copy.deepcopy(parse_once(path))


@pytest.fixture(params=PATHS, ids=NAMES)
def path(request):
    return request.param


@pytest.fixture
def config(path, tmp_path, monkeypatch):
    return parse(path, tmp_path, monkeypatch)


@pytest.fixture(params=[path for path in PATHS if 'contnet' in path.stem], ids=lambda p: p.stem)
def contnet_config(request, tmp_path, monkeypatch):
    config = parse(request.param, tmp_path, monkeypatch)
    assert config.model.backbone.type == 'contnet_mm.ConTNet'
    return request.param, config


def is_demo(path):
    return path.parent.name == 'demo'


def values(node, key):
    """Yield what any dict inside a config holds under a key."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from values(value, key)


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES) > 0


def test_each_parses_in_a_process_that_has_imported_nothing_else(tmp_path):
    code = (
        'import sys\nfrom mmengine.config import Config\n'
        'for path in sys.argv[1:]:\n'
        "    sys.modules.pop('contnet_mm', None)\n"
        '    config = Config.fromfile(path)\n'
        "    assert ('contnet_mm' in sys.modules) == ('contnet' in path.rpartition('/')[2]), path\n"
    )
    result = run_python('-c', code, *PATHS, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_it_imports_the_package_and_names_the_weights_of_its_arch(contnet_config):
    path, config = contnet_config
    assert config.custom_imports.imports == ['contnet_mm']
    backbone = config.model.backbone
    letter = LETTERS[backbone.arch]
    assert f'contnet-{letter}_' in path.stem or f'contnet-{letter}-d8_' in path.stem
    from_scratch = is_demo(path) or path.parent.name == 'contnet'
    if from_scratch and '-ft-' not in path.stem:
        assert backbone.get('init_cfg') is None
    elif config.load_from:
        assert backbone.init_cfg is None
    else:
        expected = dict(type='Pretrained', checkpoint=f'checkpoints/contnet-{letter}_in1k.pth')
        assert backbone.init_cfg == expected


def test_nothing_of_a_resnet_parent_is_left(contnet_config):
    path, config = contnet_config
    text = config.pretty_text
    for leftover in ('resnet', 'ResNet', '://', 'caffe'):
        assert leftover not in text, leftover
    assert config.model.get('pretrained') is None
    has_start = 'coco-pretrained' in path.stem
    assert (config.load_from is not None) == has_start
    preprocessor = config.model.get('data_preprocessor') or config.data_preprocessor
    assert (preprocessor.mean, preprocessor.std) == IMAGENET
    assert preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')


def test_freezing_follows_the_optimizer_and_the_start(contnet_config):
    path, config = contnet_config
    backbone = config.model.backbone
    is_classifier = config.default_scope == 'mmpretrain'
    assert backbone.get('norm_eval', False) == (not is_demo(path) and not is_classifier)
    is_detector = config.default_scope == 'mmdet' and not is_demo(path)
    uses_sgd = config.optim_wrapper.optimizer.type == 'SGD'
    assert backbone.get('frozen_stages', -1) == (1 if is_detector and uses_sgd else -1)


def test_gradients_are_clipped_with_adamw_and_with_sgd_only_where_the_parent_clips(path, config):
    clip_grad = config.optim_wrapper.get('clip_grad')
    if config.optim_wrapper.optimizer.type == 'SGD':
        expected = 35 if path.stem.endswith('_fpn_gn-head_1x_coco') else None
    elif is_demo(path):
        expected = 10.0
    else:
        expected = 5.0 if config.default_scope == 'mmpretrain' else 1.0
    assert (clip_grad and clip_grad.max_norm) == expected


def test_the_base_batch_is_that_of_the_learning_rate(path, config):
    gpus_by_images = re.search(r'_(\d+)xb(\d+)', path.stem)
    if gpus_by_images:
        expected = int(gpus_by_images[1]) * int(gpus_by_images[2])
        assert config.train_dataloader.batch_size == int(gpus_by_images[2])
    elif is_demo(path):
        expected = config.train_dataloader.batch_size
    else:
        expected = 8 if 'cityscapes' in path.stem else 16
        assert config.train_dataloader.batch_size * 8 == expected
    assert config.auto_scale_lr.base_batch_size == expected
    assert not config.auto_scale_lr.get('enable', False)


# Learning rates that belong to the base batch, by the start of a name and by optimizer.
RATES = {
    ('retinanet', 'SGD'): 0.01,
    ('fcos', 'SGD'): 0.01,
    ('faster-rcnn', 'SGD'): 0.02,
    ('mask-rcnn', 'SGD'): 0.02,
    ('pspnet', 'SGD'): 0.01,
    ('contnet', 'SGD'): 0.1,
    ('retinanet', 'AdamW'): 1e-4,
    ('faster-rcnn', 'AdamW'): 1e-4,
    ('mask-rcnn', 'AdamW'): 1e-4,
    ('contnet', 'AdamW'): 5e-4,
}


def test_the_learning_rate_is_that_of_the_base_batch(path, config):
    optimizer = config.optim_wrapper.optimizer
    family = path.stem.partition('_')[0]
    family = 'contnet' if family.startswith('contnet') else family
    if is_demo(path):
        expected = 1e-3 if family == 'pspnet' else 2e-3
    elif '-ft-' in path.stem:
        expected = 1e-4
    elif 'layer-decay' in path.stem:
        expected = 2e-4
    elif family == 'mask-rcnn' and 'cityscapes' in path.stem:
        expected = 0.01  # for 8 images, and 0.02 for COCO's 16
    elif family == 'pspnet' and '1xb4' in path.stem:
        expected = 0.005  # half the batch
    else:
        expected = RATES[family, optimizer.type]
    assert optimizer.lr == expected


def test_schedules_join_and_end_with_the_training(config):
    cfg = config.train_cfg
    end = cfg.get('max_epochs') or cfg.max_iters
    schedulers = config.param_scheduler
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    last = schedulers[-1]
    assert last.get('end', end) == end
    for scheduler in schedulers:
        assert all(milestone < end for milestone in scheduler.get('milestones', []))
        if 'T_max' in scheduler:
            assert scheduler.T_max == scheduler.end - scheduler.begin
    # Cosine and polynomial begin where the warm-up ends, or with it and by another count.
    if len(schedulers) == 2 and schedulers[0].get('by_epoch') == last.get('by_epoch'):
        assert last.begin == schedulers[0].end


@pytest.fixture(scope='module', params=PATHS, ids=NAMES)
def built(request):
    """A config and its model: built once, since the big ones take a while."""
    config = Config.fromfile(request.param)
    return config, build_model(config)


def test_channels_and_strides_fit_the_backbone(built):
    config, model = built
    backbone = model.backbone
    backbone.eval()
    height, width = 128, 192
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, height, width))
    channels = tuple(x.shape[1] for x in maps)
    strides = tuple(height // x.shape[2] for x in maps)
    if isinstance(backbone, ConTNet):
        assert (backbone.out_channels, backbone.out_strides) == (channels, strides)
    if config.default_scope == 'mmpretrain':
        assert len(channels) == 1
        assert model.head.in_channels == channels[-1]
    elif config.default_scope == 'mmseg':
        for head in (model.decode_head, model.auxiliary_head):
            assert head.in_channels == channels[head.in_index]
    else:
        assert tuple(model.neck.in_channels) == channels
        used = list(strides[model.neck.start_level :])
        dense_head = model.bbox_head if 'bbox_head' in config.model else model.rpn_head
        levels = [stride[0] for stride in dense_head.prior_generator.strides]
        assert levels[: len(used)] == used
        assert len(levels) == model.neck.num_outs
        if 'roi_head' in config.model:
            assert model.roi_head.bbox_roi_extractor.featmap_strides == used
            if model.with_mask:
                assert model.roi_head.mask_roi_extractor.featmap_strides == used
    assert len(set(values(config.model, 'num_classes'))) == 1


def test_the_optimizer_gets_each_trainable_parameter_once(built):
    config, model = built
    wrapper = build_optim_wrapper(model, {'type': 'OptimWrapper', **config.optim_wrapper})
    groups = wrapper.optimizer.param_groups
    given = [id(parameter) for group in groups for parameter in group['params']]
    # Without paramwise settings PyTorch gets frozen ones too, and leaves them alone.
    trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert len(given) == len(set(given))
    assert set(trainable) <= set(given)


def test_decay_of_weights_and_of_rates_is_as_the_name_says(built):
    config, model = built
    cfg = config.optim_wrapper
    if cfg.optimizer.type != 'AdamW' or 'paramwise_cfg' not in cfg:
        pytest.skip('one group for all parameters')
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optim_wrapper(model, {'type': 'OptimWrapper', **cfg}).optimizer.param_groups
    groups = {names[id(group['params'][0])]: group for group in groups}
    spared = [name for name, group in groups.items() if group['weight_decay'] == 0]
    assert any('.position.' in name for name in spared) and any('.norm' in name for name in spared)
    assert all('.position.' in name or 'norm' in name or '.bn' in name for name in spared)
    block = model.backbone.stages[-1][-1].encoders[0]
    deep = groups[names[id(block.attn.qkv.weight)]]
    stem = groups['backbone.stem.conv.weight']
    decayed = 0.8**8 if 'layer-decay' in config.filename else 1.0  # eight blocks in ConT-M
    assert stem['lr'] == pytest.approx(deep['lr'] * decayed)


def test_a_step_reaches_every_parameter_and_predictions_come_out(built):
    config, model = built
    num_classes = next(values(config.model, 'num_classes'))
    model.zero_grad()
    model.train()
    losses = model(**model.data_preprocessor(make_batch(config, num_classes), True), mode='loss')
    total, _ = model.parse_losses(losses)
    assert total.isfinite()
    total.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    if isinstance(model.backbone, ConTNet):  # a ResNet starts with weights that pass nothing on
        for name, parameter in model.backbone.named_parameters():
            assert not parameter.requires_grad or parameter.grad.any(), name
    model.eval()
    with torch.no_grad():
        packed = model.data_preprocessor(make_batch(config, num_classes), False)
        predictions = model(**packed, mode='predict')
        raw = model(**packed, mode='tensor')
    field = dict(mmdet='pred_instances', mmseg='pred_sem_seg', mmpretrain='pred_score')
    assert len(predictions) == 2
    assert all(field[config.default_scope] in prediction for prediction in predictions)
    tensors = list(flatten(raw))
    assert tensors and all(x.isfinite().all() for x in tensors)


def flatten(raw):
    """Yield the tensors of nested sequences."""
    if isinstance(raw, torch.Tensor):
        yield raw
    else:
        for part in raw:
            yield from flatten(part)
