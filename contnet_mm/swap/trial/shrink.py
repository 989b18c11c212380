"""A copy of a config whose model is built from nothing and runs on small images in seconds."""

from __future__ import annotations

import copy
import math
from pathlib import Path

from mmengine.config import Config, ConfigDict

from contnet_mm.apis.config import read_config
from contnet_mm.swap.edit import walk
from contnet_mm.swap.features import use_torch_norms
from contnet_mm.swap.task import library_of, type_name

# What is counted in these parts of a detector, and how much of it is plenty for small images.
LIMITED = ('rpn_head', 'train_cfg', 'test_cfg')
LIMITS = {
    'num_proposals': 100,  # of Sparse R-CNN and its like
    'nms_pre': 100,
    'max_per_img': 100,
    'max_per_image': 20,
    'num_points': 256,
}
NUM_SAMPLES = 64
NUM_QUERIES = 100
NUM_MASKS = 20
MAX_DIVISOR = 128
# Those of MMEngine, all of which give way to the first on a CPU.
WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper', 'ApexOptimWrapper', 'DeepSpeedOptimWrapper')


def make_small(config: Config) -> Config:
    """Copy a config for a run without files or downloads, on small images and a CPU.

    What makes a model what it is stays: its parts, channels, strides, losses and optimizer. Weights
    are left out, but for those of a ConTNet that are on the disk. So are batch augmentations that
    bring images back to full size; MMPretrain's mixing of images stays, since some losses need the
    soft labels that it gives. Proposals become few. A semi-supervised detector is replaced by the
    detector that it trains.
    """
    config = copy.deepcopy(config)
    model = config.model
    if 'data_preprocessor' in config:  # as the Runner does
        model.setdefault('data_preprocessor', config.data_preprocessor)
    if 'detector' in model and 'data_preprocessor' in model.detector:
        config.model = model = model.detector
    _read_teacher(model)
    _drop_weights(model)
    use_torch_norms(model)
    _drop_mixed_precision(config)
    library = library_of(config)
    if library == 'mmseg':
        (model.get('test_cfg') or {}).update(mode='whole')
    elif library == 'mmdet':
        _shrink_detector(model)
    return config


def _read_teacher(model: ConfigDict) -> None:
    """Put a distilling detector's teacher into the config, since only a name of a file is there."""
    name = model.get('teacher_config')
    if isinstance(name, (str, Path)):
        # It is relative to a checkout of MMDetection; a wheel holds the same folder.
        shipped = f'mmdet::{Path(name).as_posix().removeprefix("configs/")}'
        model.teacher_config = read_config(name if Path(name).is_file() else shipped)._cfg_dict


def _drop_weights(model: ConfigDict) -> None:
    for _, part in walk(model):
        init = part.get('init_cfg')
        is_file = isinstance(init, dict) and Path(str(init.get('checkpoint'))).is_file()
        if isinstance(init, (list, tuple)):
            part['init_cfg'] = [one for one in init if type_name(one) != 'Pretrained']
        elif type_name(init) == 'Pretrained' and not (is_file and type_name(part) == 'ConTNet'):
            part['init_cfg'] = None
        if 'pretrained' in part:
            part['pretrained'] = False if part['pretrained'] is True else None
        if 'teacher_ckpt' in part:
            part['teacher_ckpt'] = None


def _drop_mixed_precision(config: Config) -> None:
    """Keep of the optimizer's wrapper what also works on a CPU and in one step."""
    wrapper = config.get('optim_wrapper')
    if wrapper and type_name(wrapper) in ('', *WRAPPERS):
        kept = ('optimizer', 'clip_grad', 'paramwise_cfg', 'constructor')
        values = {key: wrapper[key] for key in kept if key in wrapper}
        config.optim_wrapper = dict(type='OptimWrapper', **values)


def _shrink_detector(model: ConfigDict) -> None:
    preprocessor = model.get('data_preprocessor') or {}
    augments = preprocessor.pop('batch_augments', None)
    if augments:
        divisor = max(preprocessor.get('pad_size_divisor', 1), *map(_divisor_of, augments))
        preprocessor['pad_size_divisor'] = divisor
    for _, part in walk(model):
        if 'clip_border' in part:  # MMDetection's masks stumble on a CPU over boxes off the image
            part['clip_border'] = True
    for _, part in walk([model.get(key) for key in LIMITED]):
        for key, limit in LIMITS.items():
            if isinstance(part.get(key), int) and part[key] > limit:
                part[key] = limit
        sampler = part.get('sampler') or {}
        if sampler.get('num', 0) > NUM_SAMPLES:
            sampler['num'] = NUM_SAMPLES
    if model.get('num_queries', 0) > NUM_QUERIES:  # two-stage DETRs take them from the maps
        model.num_queries = NUM_QUERIES
    rcnn = (model.get('test_cfg') or {}).get('rcnn')
    if rcnn and 'score_thr' in rcnn:  # an untrained head is sure of nothing, yet is to predict
        rcnn.update(score_thr=0.0, max_per_img=NUM_MASKS)


def _divisor_of(augment: dict) -> int:
    """Return what divides the sizes that a batch augmentation gives."""
    given = augment.get('size_divisor') or augment.get('pad_size_divisor')
    if given or 'random_size_range' in augment:
        return given or 32
    # The largest power of two that divides all sizes, since the maximum is one itself.
    return math.gcd(MAX_DIVISOR, *(augment.get('size') or [1]))
