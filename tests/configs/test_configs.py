"""Every config parses from an unrelated folder, fits together, trains and predicts."""

import copy
import re
from functools import cache

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import TRANSFORMS
from PIL import Image
from torch import nn
from torch.utils._pytree import tree_flatten

from contnet_mm import ConTNet
from contnet_mm.swap.edit import walk
from tests.helpers import ROOT, run_python
from tests.synthetic import build_model, make_batch, register

FOLDER = ROOT / 'configs'
# What lies in _base_ is a part of a config, as in OpenMMLab's libraries.
PATHS = sorted(path for path in FOLDER.rglob('*.py') if '_base_' not in path.parts)
NAMES = [path.stem for path in PATHS]
LETTERS = dict(tiny='ti', small='s', medium='m', base='b')
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
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


def is_small(path):
    """Tell whether a config trains from scratch on little data, by a recipe of its own."""
    return path.parent.name in ('demo', 'bccd')


def values(node, key):
    """Return what any dict inside a config holds under a key."""
    return (part[key] for _, part in walk(node) if key in part)


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES) > 0


def test_each_parses_in_a_process_that_has_imported_nothing_else(tmp_path):
    code = (
        'import functools, sys\nimport mmengine.config.utils as utils\n'
        'from mmengine.config import Config\n'
        'utils.load = functools.cache(utils.load)\n'  # of MMDetection's metafiles
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
    from_scratch = is_small(path) or path.parent.name == 'contnet'
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


def test_checkpoints_are_whole_and_two_are_kept(config):
    checkpoint = config.default_hooks.checkpoint
    assert (checkpoint.type, checkpoint.max_keep_ckpts) == ('contnet_mm.CheckpointHook', 2)


def test_maps_are_those_of_the_default_but_in_variants_that_say_so(contnet_config):
    path, config = contnet_config
    location = config.model.backbone.get('feature_location', 'block')
    assert location == ('encoder' if path.stem.endswith('-encoder-maps') else 'block')


@pytest.mark.parametrize('family', ['retinanet', 'fcos', 'faster_rcnn', 'mask_rcnn'])
def test_each_detector_of_the_tables_has_one_variant_with_encoder_maps(family):
    assert len([*(FOLDER / family).glob('*-encoder-maps.py')]) == 1


@pytest.mark.parametrize(
    ('pattern', 'divisor'), [('faster_rcnn/*-pad224.py', 224), ('bccd/*.py', 32)], ids=str
)
def test_images_are_padded_to_multiples(pattern, divisor):
    """224 as the official network needs it; blood cells alike for both backbones."""
    found = [parse_once(path).model.data_preprocessor for path in FOLDER.glob(pattern)]
    assert found and all(preprocessor.pad_size_divisor == divisor for preprocessor in found)


def test_masks_are_evaluated_where_they_are_predicted(config):
    if config.default_scope == 'mmdet':
        has_masks = 'mask_head' in config.model.get('roi_head', {})
        for evaluators in (config.val_evaluator, config.test_evaluator):
            coco = evaluators[0] if isinstance(evaluators, list) else evaluators
            assert ('segm' in coco.metric) == has_masks and 'bbox' in coco.metric


def test_results_of_cityscapes_instances_have_a_folder_of_their_own(config):
    evaluators = config.get('val_evaluator')
    for evaluator in evaluators if isinstance(evaluators, list) else []:
        if evaluator.type == 'CityScapesMetric':
            assert evaluator.outfile_prefix is None


def test_freezing_follows_the_kind_of_model(contnet_config):
    path, config = contnet_config
    backbone = config.model.backbone
    is_detector = config.default_scope == 'mmdet' and not is_small(path)
    is_segmentor = config.default_scope == 'mmseg' and not is_small(path)
    assert backbone.get('norm_eval', False) == (is_detector or 'norm-eval' in path.stem)
    assert backbone.get('norm_cfg', {}).get('type', 'BN') == ('SyncBN' if is_segmentor else 'BN')
    assert backbone.get('frozen_stages', -1) == -1


def test_gradients_are_clipped_with_adamw_and_with_sgd_only_where_the_parent_clips(path, config):
    clip_grad = config.optim_wrapper.get('clip_grad')
    if config.optim_wrapper.optimizer.type == 'SGD':
        expected = 35 if re.search('_fpn_gn-head_1x_coco(-encoder-maps)?$', path.stem) else None
    elif is_small(path):
        expected = 10.0
    elif path.stem.startswith('dino'):
        expected = 0.1
    else:
        expected = 5.0 if config.default_scope == 'mmpretrain' else 1.0
    assert (clip_grad and clip_grad.max_norm) == expected


def test_the_base_batch_is_that_of_the_learning_rate(path, config):
    gpus_by_images = re.search(r'_(\d+)xb(\d+)', path.stem)
    if gpus_by_images:
        expected = int(gpus_by_images[1]) * int(gpus_by_images[2])
        assert config.train_dataloader.batch_size == int(gpus_by_images[2])
    elif is_small(path):
        expected = config.train_dataloader.batch_size
    else:
        expected = 8 if 'cityscapes' in path.stem else 16
        assert config.train_dataloader.batch_size * 8 == expected
    assert config.auto_scale_lr.base_batch_size == expected
    # Without the key MMDetection refuses --auto-scale-lr.
    has_key = 'enable' in config.auto_scale_lr
    assert has_key or config.default_scope != 'mmdet'
    assert not config.auto_scale_lr.get('enable', False)


# Learning rates that belong to the base batch, by the start of a name and by optimizer.
RATES = {
    ('retinanet', 'SGD'): 0.01,
    ('fcos', 'SGD'): 0.01,
    ('faster-rcnn', 'SGD'): 0.02,
    ('mask-rcnn', 'SGD'): 0.02,
    ('pspnet', 'SGD'): 0.01,
    ('fpn', 'SGD'): 0.01,
    ('contnet', 'SGD'): 0.1,
    ('resnet', 'SGD'): 0.1,
    ('retinanet', 'AdamW'): 1e-4,
    ('fcos', 'AdamW'): 1e-4,
    ('faster-rcnn', 'AdamW'): 1e-4,
    ('mask-rcnn', 'AdamW'): 1e-4,
    ('cascade-mask-rcnn', 'AdamW'): 1e-4,
    ('dino-4scale', 'AdamW'): 1e-4,
    ('upernet', 'AdamW'): 6e-5,
    ('contnet', 'AdamW'): 5e-4,
    ('resnet', 'AdamW'): 5e-4,
    ('deit', 'AdamW'): 1e-3,
}


def test_the_learning_rate_is_that_of_the_base_batch(path, config):
    optimizer = config.optim_wrapper.optimizer
    family = path.stem.partition('_')[0]
    classifier = re.match('contnet|resnet|deit', family)
    family = classifier[0] if classifier else family
    if is_small(path):
        expected = 2e-3 if path.parent.name == 'demo' and family != 'pspnet' else 1e-3
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


# Classifiers with the official script's images, whose weights are judged by them.
BY_PIL = [path for path in PATHS if path.parent.name == 'contnet']
BY_PIL = [path for path in BY_PIL if re.search('contnet|-strong_|-200e_', path.stem)]


@pytest.mark.parametrize('path', BY_PIL, ids=lambda path: path.stem)
def test_pil_resizes_the_images_of_classifiers(path, tmp_path, monkeypatch):
    config = parse(path, tmp_path, monkeypatch)
    loaders = config.train_dataloader, config.val_dataloader, config.test_dataloader
    for loader in loaders:
        resizing = [step for step in loader.dataset.pipeline if 'Resize' in step.type]
        assert len(resizing) == 1
        assert resizing[0].backend == 'pillow'
        assert resizing[0].get('interpolation', 'bilinear') == 'bilinear'
    for step in config.train_dataloader.dataset.pipeline:
        assert 'hparams' not in step or step.hparams.interpolation == 'bilinear'


def test_a_test_image_is_what_pil_makes_of_it():
    register('mmpretrain')
    config = parse_once(next(path for path in PATHS if path.stem == 'contnet-m_8xb32_in1k'))
    image = np.random.RandomState(0).randint(0, 256, (300, 411, 3), dtype=np.uint8)
    resized = Image.fromarray(image).resize((350, 256), Image.Resampling.BILINEAR)
    results = dict(img=image[..., ::-1], img_shape=image.shape[:2])  # BGR, as files are read
    for step in config.test_dataloader.dataset.pipeline[1:]:
        results = TRANSFORMS.build(step)(results)
    cropped = np.asarray(resized)[16:240, 63:287, ::-1]
    assert np.array_equal(results['inputs'].permute(1, 2, 0).numpy(), cropped)


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


last_models = {}  # two at most: big ones take a while to build, and neighbours share theirs


@pytest.fixture(scope='module', params=PATHS, ids=NAMES)
def built(request):
    """A config with its path and its model."""
    config = copy.deepcopy(parse_once(request.param))
    backbone = {**config.model.backbone, 'init_cfg': None}  # as build_model() has it
    key = repr((config.model | {'backbone': backbone}, config.get('data_preprocessor')))
    if key not in last_models:
        if len(last_models) == 2:
            last_models.pop(next(iter(last_models)))
        last_models[key] = build_model(config)
    return request.param, config, last_models[key]


def test_channels_and_strides_fit_the_backbone(built):
    path, config, model = built
    backbone = model.backbone
    backbone.eval()
    height, width = 128, 192
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, height, width))
    channels = tuple(x.shape[1] for x in maps)
    strides = tuple(height // x.shape[2] for x in maps if x.ndim == 4)  # DeiT gives a vector
    if isinstance(backbone, ConTNet):
        assert (backbone.out_channels, backbone.out_strides) == (channels, strides)
    if config.default_scope == 'mmpretrain':
        assert len(channels) == 1
        assert model.head.in_channels == channels[-1]
    elif config.default_scope == 'mmseg':
        if model.with_neck:
            assert tuple(model.neck.in_channels) == channels
            channels = (model.neck.out_channels,) * len(channels)
            assert list(strides) == list(model.decode_head.feature_strides)
        heads = [model.decode_head]
        if model.with_auxiliary_head:
            heads.append(model.auxiliary_head)
        for head in heads:
            index = head.in_index
            wanted = [channels[i] for i in index] if isinstance(index, list) else channels[index]
            assert head.in_channels == wanted
    elif path.stem.startswith('dino'):
        assert tuple(config.model.neck.in_channels) == channels
        assert strides == (8, 16, 32)
    else:
        assert tuple(model.neck.in_channels) == channels
        used = list(strides[model.neck.start_level :])
        dense_head = model.bbox_head if 'bbox_head' in config.model else model.rpn_head
        levels = [stride[0] for stride in dense_head.prior_generator.strides]
        assert levels[: len(used)] == used
        assert len(levels) == model.neck.num_outs
        if 'roi_head' in config.model:
            for kind in ('bbox', 'mask')[: 1 + model.with_mask]:
                extractors = getattr(model.roi_head, f'{kind}_roi_extractor')
                # A cascade has one for each of its stages.
                for extractor in extractors if hasattr(extractors, '__iter__') else [extractors]:
                    assert extractor.featmap_strides == used
    assert len(set(values(config.model, 'num_classes'))) == 1


def build_optimizer(config, model):
    # Mixed precision needs a GPU, and changes no rate.
    cfg = {k: v for k, v in config.optim_wrapper.items() if k not in ('type', 'dtype')}
    return build_optim_wrapper(model, {'type': 'OptimWrapper', **cfg}).optimizer


def test_the_optimizer_gets_each_trainable_parameter_once(built):
    path, config, model = built
    groups = build_optimizer(config, model).param_groups
    given = [id(parameter) for group in groups for parameter in group['params']]
    # Without paramwise settings PyTorch gets frozen ones too, and leaves them alone.
    trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert len(given) == len(set(given))
    assert set(trainable) <= set(given)


# What a recipe spares weight decay, by the name of a parameter, itself, and whether it is a norm's.
def nothing(name, parameter, in_norm):
    return False


def flat(name, parameter, in_norm):
    """The rule of the official script, which leaves matrices and position tables to decay."""
    return parameter.ndim == 1 or name.endswith('.bias')


def norms_and_positions(name, parameter, in_norm):
    return in_norm or '.position.' in name


def biases_behind_the_backbone(name, parameter, in_norm):
    return name.endswith('.bias') and not name.startswith('backbone.')


def norms_biases_and_tokens(name, parameter, in_norm):
    return in_norm or name.endswith(('.bias', '.cls_token', '.pos_embed'))


# Weight decay and what it spares, by a part of a config's name; the first that is found holds.
RECIPES = (
    ('_(demo|bccd)', 0.05, nothing),
    ('^deit-', 0.05, norms_biases_and_tokens),
    ('-strong_', 0.5, flat),
    ('-ft-', 0.05, flat),
    ('^dino-', 1e-4, nothing),
    ('^upernet_', 0.01, norms_and_positions),
    ('adamw|ms-crop-3x', 0.05, norms_and_positions),
    ('^(pspnet|fpn)_', 5e-4, nothing),
    ('^fcos_', 1e-4, biases_behind_the_backbone),
    ('', 1e-4, nothing),
)


def rate_factor(config_name, name, in_norm):
    """Return what the recipe multiplies the learning rate of a parameter by."""
    if 'layer-decay' in config_name:  # eight blocks in ConT-M
        block = re.match(r'backbone\.(?:(stem)|stages\.(\d)\.(\d))\.', name)
        if block is None:
            return 1.0
        return 0.8**9 if block[1] else 0.8 ** (8 - 2 * int(block[2]) - int(block[3]))
    if config_name.startswith('dino-'):
        return 0.1 if name.startswith('backbone.') else 1.0
    if re.match('fcos_(?!.*(adamw|demo))', config_name):
        doubled = biases_behind_the_backbone(name, None, in_norm) and not in_norm
        return 2.0 if doubled else 1.0
    return 1.0


# `pytest -s -k rates_of_its_recipe tests/configs` prints how many tensors decay in each config.
def test_each_parameter_has_the_rates_of_its_recipe(built):
    path, config, model = built
    decay, spares = next(rule for part, *rule in RECIPES if re.search(part, path.stem))
    norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters()}
    given = {
        id(parameter): (group['weight_decay'], group['lr'])
        for group in build_optimizer(config, model).param_groups
        for parameter in group['params']
    }
    spared = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_norm = id(parameter) in norms
            spared.append(spares(name, parameter, in_norm))
            lr = config.optim_wrapper.optimizer.lr * rate_factor(path.stem, name, in_norm)
            expected = 0.0 if spared[-1] else decay, lr
            assert given[id(parameter)] == pytest.approx(expected), name
    print(f'{path.stem}: {len(spared) - sum(spared)} tensors decay, {sum(spared)} are spared')


def test_a_step_reaches_every_parameter_and_predictions_come_out(built):
    path, config, model = built
    if hasattr(model, 'has_passed'):
        return  # for another config with the same model
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
    tensors, _ = tree_flatten(raw)
    assert tensors and all(x.isfinite().all() for x in tensors)
    model.has_passed = True
