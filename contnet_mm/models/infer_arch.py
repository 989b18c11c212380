"""What the keys and shapes of a state dict tell about its arch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from contnet_mm.checkpoint.load import describe
from contnet_mm.models.arch import ARCHS, NUM_STAGES


def read_options(state_dict: Mapping[str, Tensor], checkpoint: str) -> dict[str, object]:
    """Read off a whole backbone the arguments of ConTNet that it tells.

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
    seen = describe(state_dict)
    relative = seen['position'] == 'relative'
    stem = 'stem.conv1.weight' if 'stem.conv1.weight' in state_dict else 'stem.conv.weight'
    encoder = 'stages.{}.0.encoders.{}.'
    table = encoder + ('attn.position.table' if relative else 'position.rows')
    stages, pair = range(NUM_STAGES), (0, 1)
    telling = [stem, *(encoder.format(stage, 0) + 'ffn.fc1.weight' for stage in stages)]
    telling += [table.format(stage, number) for stage in stages for number in pair]
    lost = [key for key in telling if key not in state_dict or state_dict[key].dim() < 2]
    if lost or not seen['base_channels']:
        raise ValueError(
            f'{checkpoint} does not hold a whole ConTNet: of the tensors that tell its arch '
            f'{len(lost)} are missing or have too few axes, the first are {lost[:5]}'
        )

    def window(stage: int, number: int) -> int:
        length = len(state_dict[table.format(stage, number)])
        return (math.isqrt(length) + 1) // 2 if relative else length

    def heads(stage: int) -> int:
        return state_dict[table.format(stage, 0)].shape[1] if relative else 1

    arch = dict(
        base_channels=seen['base_channels'],
        depths=tuple(seen['depths']),
        num_heads=tuple(heads(stage) for stage in stages),
        feedforward_channels=tuple(len(state_dict[key]) for key in telling[1 : 1 + NUM_STAGES]),
        window_sizes=tuple(tuple(window(stage, number) for number in pair) for stage in stages),
        drop_rates=(0.0,) * NUM_STAGES,  # leave no trace
        last_drop_rate=0.0,
    )
    return dict(
        arch=_name(arch, relative) or arch,
        in_channels=state_dict[stem].shape[1],
        position=seen['position'],
        deep_stem=seen['deep_stem'],
        qkv_bias=encoder.format(0, 0) + 'attn.qkv.bias' in state_dict,
    )


def _name(arch: dict, heads_known: bool) -> str | None:
    told = ['base_channels', 'depths', 'feedforward_channels', 'window_sizes']
    told += ['num_heads'] * heads_known
    return next(
        (name for name, known in ARCHS.items() if all(known[key] == arch[key] for key in told)),
        None,
    )
