"""Two random images with random truth, as the data loader of a config would give them."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from contnet_mm.swap.edit import walk
from contnet_mm.swap.task import MASKS, kind_of, library_of, type_name

DETECTION_SIZES = ((97, 131), (64, 90))  # of the two images, where a detector takes any
CLASSIFICATION_SIDE = 64
LEAST_HEIGHT, LEAST_WIDTH = 64, 96
NUM_BOXES = (3, 2)
NUM_PROPOSALS = 50
# Transforms that set the size of every image, and the argument that tells it. The last two leave
# it open.
SIZE_KEYS = {
    'RandomCenterCropPad': 'crop_size',
    'RandomCrop': 'crop_size',
    'CenterCrop': 'crop_size',
    'RandomResizedCrop': 'scale',
    'EfficientNetRandomCrop': 'scale',
    'Pad': 'size',
    'Resize': 'scale',
    'RandomResize': '',
    'RandomChoiceResize': '',
}


def make_batch(config: Config, model: nn.Module, scale: int = 1) -> dict:
    """Make a batch of two images with their truth for the model of a config.

    MMSegmentation's preprocessor, which pads images to one size, is told the size of these.

    Args:
        config: What :func:`contnet_mm.swap.trial.shrink.make_small` returned.
        model: Its model, which says how many classes there are.
        scale: How many times as high and as wide as the smallest ones the images are.

    Returns:
        ``inputs``, two images [C, H, W] of bytes, and their ``data_samples``.
    """
    make_sample = {'mmdet': _detection, 'mmseg': _segmentation, 'mmpretrain': _classification}
    library = library_of(config)
    rng = np.random.RandomState(0)
    has_masks = kind_of(config) in MASKS
    channels = len((config.model.get('data_preprocessor') or {}).get('mean') or 'rgb')
    batch = {'inputs': [], 'data_samples': []}
    sizes = image_sizes(config, scale)
    if getattr(model.data_preprocessor, 'size', None):
        model.data_preprocessor.size = sizes[0]
    for index, size in enumerate(sizes):
        image = rng.randint(0, 256, (channels, *size), dtype=np.uint8)
        batch['inputs'].append(torch.from_numpy(image))
        sample = make_sample[library](rng, model, index, size)
        if has_masks:
            sample.gt_instances.masks = _masks(sample.gt_instances.bboxes.tensor, size)
        batch['data_samples'].append(sample)
    return batch


def image_sizes(config: Config, scale: int = 1) -> list[tuple[int, int]]:
    """Return height and width of the two images.

    They are as small and as odd as the config allows. Where training crops images to one size, what
    is left over from a multiple of a power of two is kept: 65 stands for 769, 64 for 512, so that
    what a model takes at full size it takes here.
    """
    library = library_of(config)
    if library == 'mmseg':
        preprocessor = config.model.data_preprocessor
        crop = preprocessor.get('size') or [preprocessor.get('size_divisor') or 1] * 2
        least = (LEAST_HEIGHT * scale, LEAST_WIDTH * scale)
        return [(_like(crop[0], least[0], 32), _like(crop[1], least[1], 32))] * 2
    if library == 'mmpretrain':
        is_ours = type_name(config.model.get('backbone')) == 'ConTNet'
        small = (CLASSIFICATION_SIDE * scale,) * 2
        return [small if is_ours else _crop(config) or small] * 2
    fixed = [part['input_size'] for _, part in walk(config.model) if 'input_size' in part]
    if fixed:  # SSD's boxes and layers are for this size alone
        return [(fixed[0], fixed[0])] * 2
    crop = _crop(config)
    if crop:
        return [tuple(_like(side, LEAST_HEIGHT * scale, 128) for side in crop)] * 2
    return [(height * scale, width * scale) for height, width in DETECTION_SIZES]


def _like(side: int, least: int, divisor: int) -> int:
    """Return the smallest number, ``least`` or more, with the same remainder as ``side``."""
    return least + (side - least) % divisor


def _crop(config: Config) -> tuple[int, int] | None:
    """Return the height and width that the training pipeline gives every image, if it does."""
    size = None
    for _, step in walk((config.get('train_dataloader') or {}).get('dataset')):
        kind = type_name(step)
        if kind not in SIZE_KEYS or (kind == 'Pad' and 'size' not in step):
            continue
        size = step.get(SIZE_KEYS[kind])
        if kind in ('Pad', 'Resize') and isinstance(size, (list, tuple)):
            size = size[::-1]  # (width, height)
        # MMDetection's random crop leaves smaller images smaller.
        crops_some = kind == 'RandomCrop' and library_of(config) != 'mmpretrain'
        if crops_some or (kind == 'Resize' and step.get('keep_ratio')):
            size = None
    if isinstance(size, int):
        return (size, size)
    is_pair = isinstance(size, (list, tuple)) and len(size) == 2
    return tuple(size) if is_pair and all(isinstance(side, int) for side in size) else None


def _detection(rng: np.random.RandomState, model: nn.Module, index: int, size: tuple[int, int]):
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes

    truth = InstanceData(
        bboxes=HorizontalBoxes(_boxes(rng, NUM_BOXES[index], size)),
        labels=torch.from_numpy(rng.randint(0, num_things(model), NUM_BOXES[index])),
    )
    num_ignored = 1 - index  # an image with a box to be ignored, and one without
    ignored = InstanceData(
        bboxes=HorizontalBoxes(_boxes(rng, num_ignored, size)),
        labels=torch.zeros(num_ignored, dtype=torch.long),
    )
    sample = DetDataSample(metainfo=_meta(index, size), gt_instances=truth)
    sample.ignored_instances = ignored
    semantic = num_semantic(model)
    if semantic:
        sample.gt_sem_seg = PixelData(sem_seg=_label_map(rng, semantic, size))
    if not hasattr(model, 'rpn_head'):  # Fast R-CNN is given its proposals
        boxes = torch.cat([truth.bboxes.tensor, _boxes(rng, NUM_PROPOSALS, size)])
        scores = torch.from_numpy(rng.uniform(size=len(boxes)).astype(np.float32))
        sample.proposals = InstanceData(bboxes=boxes, scores=scores)
    return sample


def _segmentation(rng: np.random.RandomState, model: nn.Module, index: int, size: tuple[int, int]):
    from mmseg.structures import SegDataSample

    labels = _label_map(rng, find_head(model, 'decode_head').num_classes, size)
    sample = SegDataSample(metainfo=_meta(index, size))
    sample.gt_sem_seg = PixelData(data=labels)
    edges = torch.zeros_like(labels)  # of the classes: PIDNet learns them as well
    edges[..., 1:] = labels[..., 1:] != labels[..., :-1]
    sample.gt_edge_map = PixelData(data=edges)
    return sample


def _classification(rng: np.random.RandomState, model: nn.Module, index: int, size: tuple):
    from mmpretrain.structures import DataSample

    num_classes = getattr(model.head, 'num_classes', None) or model.data_preprocessor.num_classes
    sample = DataSample(metainfo=_meta(index, size))
    names = {base.__name__ for base in type(model.head).__mro__}
    if {'MultiLabelClsHead', 'CSRAClsHead'} & names:
        return sample.set_gt_label([index, num_classes - 1])
    return sample.set_gt_label(int(rng.randint(num_classes)))


def _meta(index: int, size: tuple[int, int]) -> dict:
    return dict(
        img_id=index,
        img_path='random.png',
        img_shape=size,
        ori_shape=size,
        pad_shape=size,
        scale_factor=(1.0, 1.0),
        flip=False,
        flip_direction=None,
        border=np.array([0, size[0], 0, size[1]], dtype=np.float32),  # for CenterNet and CornerNet
    )


def num_things(model: nn.Module) -> int:
    """Return the number of classes of boxes that a detector's heads were built for."""
    for path in ('roi_head.bbox_head', 'panoptic_head', 'bbox_head', 'mask_head', 'rpn_head'):
        head = find_head(model, path)
        classes = getattr(head, 'num_things_classes', None) or getattr(head, 'num_classes', None)
        if classes:
            return classes
    raise ValueError(f'no head of {type(model).__name__} says how many classes there are')


def num_semantic(model: nn.Module) -> int:
    """Return the number of classes of a detector's semantic truth, 0 if it takes none."""
    for path in ('semantic_head', 'panoptic_head', 'roi_head.semantic_head'):
        head = find_head(model, path)
        if hasattr(head, 'num_stuff_classes'):
            stuff = head.num_stuff_classes
            return head.num_things_classes + stuff if stuff else 0
        if head is not None:
            return head.num_classes
    return 0


def find_head(model: nn.Module, path: str) -> nn.Module | None:
    """Return the head at a dotted path, the last one of a cascade; None where there is none."""
    head = model
    for name in path.split('.'):
        head = getattr(head, name, None)
    return head[-1] if isinstance(head, nn.ModuleList) else head


def _boxes(rng: np.random.RandomState, count: int, size: tuple[int, int]) -> Tensor:
    """Return boxes (x1, y1, x2, y2) from a quarter of the image's sides up, [count, 4]."""
    sides = rng.uniform(0.25, 0.9, (count, 2)) * size[::-1]
    corners = rng.uniform(0, 1, (count, 2)) * (size[::-1] - sides)
    return torch.from_numpy(np.hstack([corners, corners + sides]).astype(np.float32))


def _masks(boxes: Tensor, size: tuple[int, int]):
    """Return the ellipses that fill boxes [N, 4] as MMDetection's masks."""
    from mmdet.structures.mask import BitmapMasks

    rows, columns = np.ogrid[: size[0], : size[1]]
    masks = [
        ((columns - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((rows - (y1 + y2) / 2) / (y2 - y1)) ** 2
        <= 0.25
        for x1, y1, x2, y2 in boxes.tolist()
    ]
    return BitmapMasks(np.array(masks, dtype=np.uint8), *size)


def _label_map(rng: np.random.RandomState, num_classes: int, size: tuple[int, int]) -> Tensor:
    """Return a label per pixel in blocks of 8 pixels, [1, H, W].

    No pixel is to be ignored: MMSegmentation 1.2 stumbles over that where classes have weights.
    """
    blocks = rng.randint(0, num_classes, [-(-side // 8) for side in size])
    labels = blocks.repeat(8, axis=0).repeat(8, axis=1)[: size[0], : size[1]]
    return torch.from_numpy(labels.astype(np.int64))[None]
