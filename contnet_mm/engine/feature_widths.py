"""The widths of a backbone's maps beside those that a neck or head reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from contnet_mm.checkpoint.options import strip_wrappers
from contnet_mm.models.contnet import ConTNet


def check_feature_widths(model: nn.Module) -> None:
    """Check that no neck or head expects the maps of the other ``feature_location``.

    Raises:
        ValueError: If one does.
    """
    for name, reader, backbone in _find_readers(model):
        expected = getattr(reader, 'in_channels', None)  # a number, or one for each map
        index = getattr(reader, 'in_index', None)
        other = _other_location(backbone)
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


def check_loaded_widths(model: nn.Module, state_dict: Mapping[str, object]) -> None:
    """Check that weights of necks and heads were not trained with the other ``feature_location``.

    MMEngine leaves out tensors of another shape with a warning, and they stay random.

    Raises:
        ValueError: If they were.
    """
    loaded = {strip_wrappers(str(key)): value for key, value in state_dict.items()}
    for name, reader, backbone in _find_readers(model):
        other = _other_location(backbone)
        there = dict(zip(backbone.out_channels, backbone.channels_at(other), strict=True))
        for key, tensor in reader.state_dict().items():
            found = loaded.get(f'{name}.{key}')
            if not isinstance(found, Tensor) or min(found.ndim, tensor.ndim) < 2:
                continue
            if found.shape[1] != tensor.shape[1] and found.shape[1] == there.get(tensor.shape[1]):
                raise ValueError(
                    f'{name}.{key} of the checkpoint reads {found.shape[1]} channels, and that of '
                    f'the config {tensor.shape[1]}: it was trained with feature_location='
                    f'{other!r}. Set that in the backbone with the {name} of that training, as the '
                    f"configs that end in -encoder-maps do for 'encoder'"
                )


def _find_readers(model: nn.Module) -> Iterator[tuple[str, nn.Module, ConTNet]]:
    """Find what reads the maps of a ConTNet: its name, itself and the backbone."""
    for prefix, holder in model.named_modules():
        backbone = getattr(holder, 'backbone', None)
        if isinstance(backbone, ConTNet):
            # With a neck, heads do not read the backbone.
            names = ['neck'] if hasattr(holder, 'neck') else ['decode_head', 'auxiliary_head']
            for name in names:
                reader = getattr(holder, name, None)
                if isinstance(reader, nn.Module):
                    yield strip_wrappers(f'{prefix}.{name}').lstrip('.'), reader, backbone


def _other_location(backbone: ConTNet) -> str:
    return 'encoder' if backbone.feature_location == 'block' else 'block'
