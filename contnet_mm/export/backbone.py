"""A backbone alone, as it is exported."""

from __future__ import annotations

from torch import Tensor

from contnet_mm.export.network import ExportedNetwork


class ExportedBackbone(ExportedNetwork):
    """The maps of a backbone, ``map_0`` and so on, float [B, C, h, w]."""

    task = 'backbone'
    resize = 'to the size of the input, by bilinear interpolation'

    def compute_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the backbone."""
        return tuple(self.model(x))
