"""A copy of a config whose model is built from nothing and runs on small images in seconds."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config, ConfigDict

from contnet_mm.swap.task import dicts_in, library_of, type_name

# What is counted in train_cfg and test_cfg, and how much of it is plenty for small images.
LIMITS = {'nms_pre': 100, 'max_per_img': 100, 'max_per_image': 20, 'num_points': 256}
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


def use_torch_norms(part: object) -> None:
    """Put torch's SyncBN where mmcv's is, in place: only torch's is built in a single process."""
    for each in dicts_in(part):
        if type_name(each) == 'MMSyncBN':
            each['type'] = 'SyncBN'


def _read_teacher(model: ConfigDict) -> None:
    """Put a distilling detector's teacher into the config, since only a name of a file is there.

    The name is relative to MMDetection's checkout, or to where it keeps configs in a wheel.
    """
    name = model.get('teacher_config')
    if not isinstance(name, (str, Path)):
        return
    spec = find_spec('mmdet')
    package = Path(spec.origin).parent if spec else Path()
    places = [Path(), package.parent, package / '.mim']
    found = [place / name for place in places if (place / name).is_file()]
    if found:
        model.teacher_config = Config.fromfile(found[0])._cfg_dict


def _drop_weights(model: ConfigDict) -> None:
    for part in dicts_in(model):
        if 'init_cfg' in part and not _is_contnet_with_file(part):
            part['init_cfg'] = _without_pretrained(part['init_cfg'])
        if 'pretrained' in part:
            part['pretrained'] = False if part['pretrained'] is True else None
        if 'teacher_ckpt' in part:
            part['teacher_ckpt'] = None


def _is_contnet_with_file(part: dict) -> bool:
    init = part['init_cfg']
    is_file = isinstance(init, dict) and Path(str(init.get('checkpoint'))).is_file()
    return is_file and type_name(part) == 'ConTNet'


def _without_pretrained(init: object) -> object:
    if isinstance(init, (list, tuple)):
        return [one for one in init if type_name(one) != 'Pretrained']
    return None if type_name(init) == 'Pretrained' else init


def _drop_mixed_precision(config: Config) -> None:
    """Keep of the optimizer's wrapper what also works on a CPU and in one step."""
    wrapper = config.get('optim_wrapper')
    if wrapper and type_name(wrapper) in ('', *WRAPPERS):
        kept = ('optimizer', 'clip_grad', 'paramwise_cfg', 'constructor')
        values = {key: wrapper[key] for key in kept if key in wrapper}
        config.optim_wrapper = dict(type='OptimWrapper', **values)


def _shrink_detector(model: ConfigDict) -> None:
    preprocessor = model.get('data_preprocessor') or {}
    augments = preprocessor.pop('batch_augments', None) or []
    if augments:
        divisor = max(preprocessor.get('pad_size_divisor', 1), *map(_divisor_of, augments))
        preprocessor['pad_size_divisor'] = divisor
    for part in dicts_in(model):
        if 'clip_border' in part:  # MMDetection's masks stumble on a CPU over boxes off the image
            part['clip_border'] = True
    for part in dicts_in(model.get('rpn_head')):  # of Sparse R-CNN and its like, as many as above
        if part.get('num_proposals', 0) > LIMITS['max_per_img']:
            part['num_proposals'] = LIMITS['max_per_img']
    for part in dicts_in([model.get('train_cfg'), model.get('test_cfg')]):
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
    if given:
        return given
    return 32 if 'random_size_range' in augment else _largest_divisor(augment.get('size') or [1])


def _largest_divisor(sizes: list[int]) -> int:
    """Return the largest power of two up to ``MAX_DIVISOR`` that divides all sizes."""
    divisor = MAX_DIVISOR
    while any(size % divisor for size in sizes):
        divisor //= 2
    return divisor
