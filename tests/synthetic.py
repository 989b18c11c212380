"""Small random batches for any config of the three task libraries, as their data loaders give."""

import importlib

import numpy as np
import torch

# Two images of different odd sizes: detectors pad them to one.
SHAPES = [(3, 97, 131), (3, 64, 90)]
SEG_SHAPE = (3, 65, 97)
CLS_SHAPE = (3, 64, 64)


def register(scope):
    """Register everything of a library and make it the default scope."""
    importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=True)


def build_model(config):
    """Build the model of a config without its pretrained weights; return it."""
    register(config.default_scope)
    model = config.model
    model.backbone.init_cfg = None
    if model.get('head', {}).get('init_cfg'):
        model.head.pop('init_cfg')
    if 'pretrained' in model:
        model.pretrained = None
    if 'data_preprocessor' in config:
        model.setdefault('data_preprocessor', config.data_preprocessor)  # as the Runner does
    if config.default_scope == 'mmseg':
        model.data_preprocessor.size = SEG_SHAPE[1:]
    if 'roi_head' in model:  # fewer proposals than large images need
        model.train_cfg.rpn_proposal.max_per_img = 100
        model.test_cfg.rpn.max_per_img = 20
        stages = model.train_cfg.rcnn  # a list in a cascade
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 64
        model.test_cfg.rcnn.max_per_img = 20
    if 'num_queries' in model:  # DINO takes them from the tokens, of which small images have few
        model.num_queries = 100
    registry = importlib.import_module(f'{config.default_scope}.registry').MODELS
    built = registry.build(model)
    built.init_weights()
    if config.default_scope == 'mmseg':
        from mmengine.model import revert_sync_batchnorm

        built = revert_sync_batchnorm(built)  # as the Runner does without several processes
    return built


def make_batch(config, num_classes):
    """Make a batch of two images with random truth."""
    rng = np.random.RandomState(0)
    if config.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        with_mask = 'mask_head' in config.model.get('roi_head', {})
        return demo_mm_inputs(
            2, SHAPES, num_items=[3, 2], num_classes=num_classes, with_mask=with_mask
        )
    if config.default_scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        samples = []
        for _ in range(2):
            labels = torch.from_numpy(rng.randint(0, num_classes, (1, *SEG_SHAPE[1:])))
            meta = dict(img_shape=SEG_SHAPE[1:], ori_shape=SEG_SHAPE[1:], pad_shape=SEG_SHAPE[1:])
            samples.append(SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=meta))
        return dict(inputs=_images(rng, SEG_SHAPE), data_samples=samples)
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(int(rng.randint(num_classes))) for _ in range(2)]
    return dict(inputs=_images(rng, CLS_SHAPE), data_samples=samples)


def _images(rng, shape):
    return [torch.from_numpy(rng.randint(0, 255, shape, dtype=np.uint8)) for _ in range(2)]
