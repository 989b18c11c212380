"""The widths of a backbone's maps beside those that a neck or head expects."""

from __future__ import annotations

from torch import nn

from contnet_mm.models.contnet import ConTNet


def check_feature_widths(model: nn.Module) -> None:
    """Check that no neck or head expects the maps of the other ``feature_location``.

    Raises:
        ValueError: If one does.
    """
    for holder in model.modules():
        backbone = getattr(holder, 'backbone', None)
        if isinstance(backbone, ConTNet):
            # With a neck, heads do not read the backbone.
            names = ['neck'] if hasattr(holder, 'neck') else ['decode_head', 'auxiliary_head']
            for name in names:
                _check_reader(name, getattr(holder, name, None), backbone)


def _check_reader(name: str, reader: nn.Module | None, backbone: ConTNet) -> None:
    expected = getattr(reader, 'in_channels', None)  # a number, or one for each map
    index = getattr(reader, 'in_index', None)
    other = 'encoder' if backbone.feature_location == 'block' else 'block'
    here, there = backbone.out_channels, backbone.channels_at(other)
    if isinstance(expected, int) and isinstance(index, int):
        here, there = here[index], there[index]
    elif isinstance(expected, (list, tuple)):
        expected = (*expected,)
    if expected == there and there != here:
        raise ValueError(
            f'the {name} expects {expected} channels, and the maps of ConTNet have {here}: set '
            f'feature_location={other!r} in the backbone, or in_channels={here} in the {name}'
        )
