"""A single-stage detector of MMDetection as it is exported."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors.single_stage import SingleStageDetector
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torchvision.ops import nms

from contnet_mm.export.network import Arrays, ExportedNetwork, Size

KINDS = ('cls_score', 'bbox_pred', 'score_factor')  # maps of a head, each for all levels


class ExportedDetector(ExportedNetwork):
    """Boxes and scores, ``dets``, float [1, N, 5], and classes, ``labels``, int64 [1, N].

    A row of ``dets`` is left, top, right, bottom in pixels of the input, and the score; rows are
    sorted by falling score. As in MMDetection, those are what is left of the best candidates of
    each level after non-maximum suppression. Its own code branches on how many there are, which
    no exporter takes; here each level has the same number, and those below the threshold are
    dropped afterwards.
    """

    task = 'detection'
    outputs = ('dets', 'labels')
    is_padded = True
    resize = 'into the upper left corner of the input, as large as fits, its ratio kept'

    def __init__(self, model: nn.Module, *args) -> None:
        _check_model(model)
        super().__init__(model, *args)
        self.head, self.test_cfg = model.bbox_head, model.bbox_head.test_cfg

    def compute_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the head, [B, C, h, w]: of one kind at all levels, then the next."""
        return tuple(m for kind in self.model._forward(x) for m in kind)

    def name_maps(self, maps: Sequence[Tensor]) -> tuple[str, ...]:
        """Name the maps by kind and level."""
        levels = self.head.prior_generator.num_levels
        return tuple(f'{KINDS[i // levels]}_{i % levels}' for i in range(len(maps)))

    def decode(self, maps: tuple[Tensor, ...], valid_size: Tensor) -> tuple[Tensor, ...]:
        """Return the detections in an image."""
        levels = self.head.prior_generator.num_levels
        kinds = [maps[i : i + levels] for i in range(0, len(maps), levels)]
        sizes = [m.shape[-2:] for m in kinds[0]]
        priors = self.head.prior_generator.grid_priors(sizes, maps[0].dtype, maps[0].device)
        candidates = [self._select(*level) for level in zip(priors, *kinds, strict=True)]
        scores, is_valid, labels, deltas, priors = map(torch.cat, zip(*candidates, strict=True))
        coder = self.head.bbox_coder
        boxes = _as_tensor(coder.decode(priors, deltas))
        if getattr(coder, 'clip_border', True):
            limits = valid_size[0].flip(0).repeat(2).to(boxes.dtype)
            boxes = torch.minimum(boxes.clamp(min=0), limits)
        if self.test_cfg.get('min_bbox_size', -1) >= 0:
            is_valid = is_valid & (boxes[:, 2:] > boxes[:, :2]).all(1)
        # mmcv moves the boxes of each class to a place of their own, as far as the largest is.
        largest = boxes.amax(1).masked_fill(~is_valid, 0).amax(0)
        index = is_valid.nonzero().squeeze(1)
        boxes, scores, labels = boxes[index], scores[index], labels[index]
        moved = boxes
        if not self.test_cfg.nms.get('class_agnostic', False):
            moved = boxes + (labels.to(boxes.dtype) * (largest + 1))[:, None]
        threshold = float(np.float32(self.test_cfg.nms.iou_threshold))
        kept = nms(moved, scores, threshold)[: self.test_cfg.max_per_img]
        return torch.cat([boxes[kept], scores[kept, None]], 1)[None], labels[kept][None]

    def _select(
        self, priors: Tensor, logits: Tensor, deltas: Tensor, factors: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return the best candidates of a level.

        Returns:
            Their scores, whether they reach the threshold, classes, what the head says of the
            boxes, and priors; the first dimension of each is the number of candidates.
        """
        logits = logits[0].permute(1, 2, 0).reshape(-1, self.head.cls_out_channels)
        if not self.head.use_sigmoid_cls:  # the last class is the background
            logits = logits.softmax(-1)[:, :-1]
        classes = logits.shape[1]
        # A sigmoid does not change the order.
        scores, index = logits.flatten().topk(min(self.test_cfg.nms_pre, logits.numel()))
        scores = scores.sigmoid() if self.head.use_sigmoid_cls else scores
        is_valid = scores > self.test_cfg.get('score_thr', 0)
        place, labels = index // classes, index % classes
        if factors is not None:
            scores = scores * factors[0].permute(1, 2, 0).reshape(-1)[place].sigmoid()
        size = self.head.bbox_coder.encode_size
        deltas = deltas[0].permute(1, 2, 0).reshape(-1, size)[place]
        return scores, is_valid, labels, deltas, _as_tensor(priors)[place]

    def predict(self, x: Tensor, valid_size: Size) -> dict[str, Tensor]:
        """Return the detections."""
        sample = DetDataSample(metainfo=dict(img_shape=valid_size, scale_factor=(1.0, 1.0)))
        found = self.model.predict(x, [sample], rescale=False)[0].pred_instances
        dets = torch.cat([found.bboxes, found.scores[:, None]], 1)
        return dict(dets=dets[None], labels=found.labels[None])

    def add_prediction(self, sample: object, found: Arrays, valid_size: Size) -> None:
        """Set the detections in the coordinates of the original image."""
        dets, labels = (torch.from_numpy(found[name][0]) for name in self.outputs)
        sample.pred_instances = InstanceData(
            bboxes=dets[:, :4] / dets.new_tensor(sample.scale_factor).repeat(2),
            scores=dets[:, 4],
            labels=labels,
        )


def _as_tensor(boxes: Tensor | object) -> Tensor:
    return getattr(boxes, 'tensor', boxes)  # MMDetection's box types wrap one


def _check_model(model: nn.Module) -> None:
    """Check that a detector predicts as :class:`ExportedDetector` does.

    Raises:
        ValueError: If it does not.
    """
    name = type(model).__name__
    if not isinstance(model, SingleStageDetector):
        raise ValueError(
            f"{name} cannot be exported, only its backbone, by --backbone: torch's exporters "
            'refuse its code, which branches on the number of proposals. MMDeploy rewrites that '
            "code; there, codebase_config=dict(module=['contnet_mm']) makes ConTNet known"
        )
    head = model.bbox_head
    own = [
        method
        for method in ('predict', 'predict_by_feat', '_predict_by_feat_single')
        if getattr(type(head), method, None) is not getattr(BaseDenseHead, method)
    ]
    if own or getattr(head.loss_cls, 'custom_cls_channels', False):
        raise ValueError(
            f'{type(head).__name__} of {name} cannot be exported: it decodes in a way of its own '
            f'({", ".join(own) or "custom_cls_channels"}), other than RetinaNet and FCOS'
        )
    cfg = head.test_cfg
    options = dict(cfg.get('nms') or dict(type=None))
    if options.pop('type', 'nms') != 'nms' or set(options) - {'iou_threshold', 'class_agnostic'}:
        raise ValueError(
            f'test_cfg.nms of the model must be type="nms" with iou_threshold and class_agnostic '
            f'alone, got {cfg.get("nms")}'
        )
    if cfg.get('nms_pre', -1) < 1 or cfg.get('min_bbox_size', -1) > 0 or cfg.max_per_img < 1:
        raise ValueError(
            'test_cfg of the model must have nms_pre and max_per_img of at least 1 and '
            f'min_bbox_size of at most 0, got {dict(cfg)}'
        )
