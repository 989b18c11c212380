"""What the keys and shapes of a state dict tell about its arch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from contnet_mm.checkpoint.load import infer_settings
from contnet_mm.models.arch import ARCHS, NUM_STAGES


def infer_arch(state_dict: Mapping[str, Tensor], checkpoint: str) -> dict[str, object]:
    """Infer the arguments of ConTNet that the tensors of a whole backbone tell.

    Args:
        state_dict: Tensors by our names.
        checkpoint: Name of the file, for errors.

    Returns:
        ``arch`` (a name, or a dict where it is none of the paper's), ``in_channels``, ``position``,
        ``deep_stem`` and ``qkv_bias``. An absolute position does not tell the number of heads: a
        dict then says 1.

    Raises:
        ValueError: If tensors that tell the arch are missing or have too few axes.
    """
    settings = infer_settings(state_dict)
    relative = settings['position'] == 'relative'
    stem = 'stem.conv1.weight' if 'stem.conv1.weight' in state_dict else 'stem.conv.weight'
    encoder = 'stages.{}.0.encoders.{}.'
    table = encoder + ('attn.position.table' if relative else 'position.rows')
    stages = range(NUM_STAGES)
    feedforward = [encoder.format(stage, 0) + 'ffn.fc1.weight' for stage in stages]
    tables = [[table.format(stage, number) for number in (0, 1)] for stage in stages]
    needed = [stem, *feedforward, *sum(tables, [])]
    lost = [key for key in needed if key not in state_dict or state_dict[key].dim() < 2]
    if lost or not settings['base_channels']:
        raise ValueError(
            f'{checkpoint} does not hold a whole ConTNet: of the tensors that tell its arch '
            f'{len(lost)} are missing or have too few axes, the first are {lost[:5]}'
        )

    def window_size(key: str) -> int:
        length = len(state_dict[key])
        return (math.isqrt(length) + 1) // 2 if relative else length

    arch = dict(
        base_channels=settings['base_channels'],
        depths=tuple(settings['depths']),
        num_heads=tuple(state_dict[key].shape[1] if relative else 1 for key, _ in tables),
        feedforward_channels=tuple(len(state_dict[key]) for key in feedforward),
        window_sizes=tuple(tuple(map(window_size, pair)) for pair in tables),
        drop_rates=(0.0,) * NUM_STAGES,  # leave no trace
        last_drop_rate=0.0,
    )
    told = {*arch} - {'drop_rates', 'last_drop_rate'} - ({'num_heads'} if not relative else set())
    names = [name for name, known in ARCHS.items() if all(known[k] == arch[k] for k in told)]
    return dict(
        arch=names[0] if names else arch,
        in_channels=state_dict[stem].shape[1],
        position=settings['position'],
        deep_stem=settings['deep_stem'],
        qkv_bias=encoder.format(0, 0) + 'attn.qkv.bias' in state_dict,
    )
