"""A segmentor of MMSegmentation as it is exported."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder
from torch import Tensor, nn

from contnet_mm.export.network import Arrays, ExportedNetwork, Size


class ExportedSegmentor(ExportedNetwork):
    """Class of each pixel, ``labels``, int64 [B, H, W]."""

    task = 'segmentation'
    outputs = ('labels',)
    is_padded = True
    resize = 'into the upper left corner of the input, as large as fits, its ratio kept'

    def __init__(self, model: nn.Module, preprocessor: nn.Module, size: Size, *args) -> None:
        if not isinstance(model, EncoderDecoder):
            raise ValueError(f'{type(model).__name__} cannot be exported; an EncoderDecoder can')
        crop = model.test_cfg.get('crop_size', size)
        slides = model.test_cfg.get('mode', 'whole') == 'slide'
        if slides and any(length > limit for length, limit in zip(size, crop, strict=True)):
            raise ValueError(
                f'test_cfg of the model says mode="slide": a file computes a single window; --size '
                f'must be at most {crop[0]}x{crop[1]}, got {size[0]}x{size[1]}'
            )
        super().__init__(model, preprocessor, size, *args)

    def compute_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each pixel, [B, classes, H, W]."""
        meta = dict(img_shape=self.size, pad_shape=self.size, ori_shape=self.size)
        return (self.model.encode_decode(x, [meta]),)

    def decode(self, maps: tuple[Tensor, ...], valid_size: Tensor | None) -> tuple[Tensor, ...]:
        """Return the classes."""
        (logits,) = maps
        if logits.shape[1] == 1:
            threshold = self.model.decode_head.threshold
            return ((logits[:, 0].sigmoid() > threshold).long(),)
        return (logits.argmax(1),)

    def name_maps(self, maps: tuple[Tensor, ...]) -> tuple[str, ...]:
        """Name the logits."""
        return ('logits',)

    def predict(self, x: Tensor, valid_size: Size) -> dict[str, Tensor]:
        """Return the classes."""
        return dict(labels=self.model.predict(x)[0].pred_sem_seg.data.long())

    def add_prediction(self, sample: object, found: Arrays, valid_size: Size) -> None:
        """Set the class of each pixel of the original image, that of its nearest in the input."""
        height, width = valid_size
        labels = torch.from_numpy(found['labels'])[:, None, :height, :width]
        labels = F.interpolate(labels.float(), sample.ori_shape, mode='nearest-exact').long()
        sample.pred_sem_seg = PixelData(data=labels[0])
