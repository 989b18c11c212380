"""Class activation maps by Grad-CAM (arXiv 1610.02391), as the library grad-cam computes them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from contnet_mm.visualization.prepare import PreparedImage

INSTALL = 'pip install grad-cam'


class ClassScores(nn.Module):
    """A model as grad-cam wants it: an image in, one score per class out.

    The score of a class is its logit in a classifier; the sum of its logits over the pixels that
    get this class in a segmentor; its highest logit of any anchor, point or proposal in a detector.

    Args:
        model: Of one of the three libraries.
        image: What goes through it, for what the library tells a model of an image.
        level: Which of the backbone's maps to look at, from 1.
    """

    def __init__(self, model: nn.Module, image: PreparedImage, level: int = 1) -> None:
        super().__init__()
        self.model, self.image, self.level = model, image, level
        self.tap = nn.Identity()  # its output is the map, which grad-cam hooks

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores of an image, [1, 3, H, W] -> [1, classes]."""
        handle = self.model.backbone.register_forward_hook(self._show)
        try:
            out = self.model(inputs, self.image.data_samples, mode='tensor')
        finally:
            handle.remove()
        return _scores_of(self.model, out)

    def predict(self) -> Tensor:
        """Return how much the model's own prediction gives each class, from 0 to 1, [classes].

        That is the score of a class in a classifier and its best detection in a detector, and its
        share of the pixels in a segmentor.
        """
        inputs, samples = self.image.inputs, self.image.data_samples
        with torch.no_grad():
            if _is_detector(self.model):
                found = self.model(inputs, samples, mode='predict')[0].pred_instances
                best = inputs.new_zeros(_detection_head(self.model).num_classes)
                return best.scatter_reduce(0, found.labels, found.scores, 'amax')
            out = self.model(inputs, samples, mode='tensor')
        if out.dim() == 2:
            return out[0].softmax(-1)
        counts = torch.bincount(out.argmax(1).flatten(), minlength=out.shape[1])
        return counts / counts.sum()

    def _show(self, backbone: nn.Module, inputs: tuple, maps: tuple) -> None:
        self.tap(maps[self.level - 1])  # the same tensor, whose gradient grad-cam keeps


def _scores_of(model: nn.Module, out: object) -> Tensor:
    if not _is_detector(model):
        if out.dim() == 2:
            return out
        winners = out.argmax(1, keepdim=True)
        return (out * torch.zeros_like(out).scatter(1, winners, 1.0)).sum((2, 3))
    head = _detection_head(model)
    if hasattr(model, 'roi_head'):  # proposals, with the background behind the classes
        return out[0][0][:, : head.num_classes].amax(0, keepdim=True)
    if not isinstance(out[0], (list, tuple)) or not hasattr(head, 'cls_out_channels'):
        raise ValueError(f'the scores of {type(head).__name__} are no maps of anchors or points')
    logits = [x.permute(0, 2, 3, 1).reshape(-1, head.cls_out_channels) for x in out[0]]
    return torch.cat(logits)[:, : head.num_classes].amax(0, keepdim=True)


def _is_detector(model: nn.Module) -> bool:
    return hasattr(model, 'bbox_head') or hasattr(model, 'roi_head')


def _detection_head(model: nn.Module) -> nn.Module:
    head = model.roi_head.bbox_head if hasattr(model, 'roi_head') else model.bbox_head
    return head[-1] if isinstance(head, nn.ModuleList) else head  # one per stage of a cascade


def class_activation(scores: ClassScores, category: int) -> np.ndarray:
    """Return where an image speaks for a class, from 0 to 1, [h, w] as its pixels.

    Args:
        scores: The model with the image.
        category: Index of the class.

    Raises:
        ModuleNotFoundError: If grad-cam is not installed.
        ValueError: If the map has no say in the score of that class, or nothing in it speaks for
            the class.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'class activation maps need the library grad-cam: {error}; {INSTALL}'
        ) from error
    inputs, (height, width, _) = scores.image.inputs, scores.image.pixels.shape
    # As a context manager it would swallow errors.
    cam = GradCAM(model=scores, target_layers=[scores.tap])
    try:
        with torch.enable_grad():
            [found] = cam(input_tensor=inputs, targets=[ClassifierOutputTarget(category)])
    except AttributeError as error:
        if cam.activations_and_grads.gradients:
            raise
        raise ValueError(
            f'map {scores.level} of the backbone has no say in the score of this class'
        ) from error
    finally:
        cam.activations_and_grads.release()
    if not found.any():
        raise ValueError(f'nothing in map {scores.level} of the backbone speaks for this class')
    return found[:height, :width]  # without padding
