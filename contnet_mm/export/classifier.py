"""A classifier of MMPretrain as it is exported."""

from __future__ import annotations

import torch
from mmpretrain.models import ClsHead, ImageClassifier
from torch import Tensor, nn

from contnet_mm.export.network import Arrays, ExportedNetwork, Size


class ExportedClassifier(ExportedNetwork):
    """Scores of the classes, ``scores``, float [B, classes]; they add up to 1."""

    task = 'classification'
    outputs = ('scores',)
    resize = 'by the steps of the pipeline'

    def __init__(self, model: nn.Module, *args, **kwargs) -> None:
        if not isinstance(model, ImageClassifier) or not isinstance(model.head, ClsHead):
            raise ValueError(
                f'{type(model).__name__} with {type(getattr(model, "head", None)).__name__} cannot '
                'be exported; an ImageClassifier whose head scores classes by softmax can'
            )
        super().__init__(model, *args, **kwargs)

    def compute_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the logits, [B, classes]."""
        return (self.model.head(self.model.extract_feat(x)),)

    def decode(self, maps: tuple[Tensor, ...], valid_size: Tensor | None) -> tuple[Tensor, ...]:
        """Return the scores."""
        return (maps[0].softmax(1),)

    def name_maps(self, maps: tuple[Tensor, ...]) -> tuple[str, ...]:
        """Name the logits."""
        return ('logits',)

    def predict(self, x: Tensor, valid_size: Size) -> dict[str, Tensor]:
        """Return the scores."""
        return dict(scores=self.model.predict(x)[0].pred_score[None])

    def add_prediction(self, sample: object, found: Arrays, valid_size: Size) -> None:
        """Set score and label."""
        scores = torch.from_numpy(found['scores'][0])
        sample.set_pred_score(scores).set_pred_label(scores.argmax()[None])
