"""The table of archs, and the check of an arch."""

from __future__ import annotations

from contnet_mm.utils.checks import check_integer, check_integers, check_rate, check_sequence

NUM_STAGES = 4

# Paper table 1; widths, heads and dropout per stage as in the released network.
_COMMON = dict(
    base_channels=64,
    num_heads=(1, 2, 4, 8),
    feedforward_channels=(256, 512, 1024, 1024),
    window_sizes=((7, 14), (7, 14), (7, 14), (7, 7)),
    drop_rates=(0.0, 0.0, 0.0, 0.0),
    last_drop_rate=0.0,
)
ARCHS = {
    'tiny': dict(
        _COMMON,
        base_channels=48,
        depths=(1, 1, 1, 1),
        feedforward_channels=(196, 392, 768, 768),
    ),
    'small': dict(_COMMON, depths=(1, 1, 1, 1)),
    'medium': dict(_COMMON, depths=(2, 2, 2, 2)),
    'base': dict(_COMMON, depths=(3, 4, 6, 3), drop_rates=(0.0, 0.0, 0.1, 0.1), last_drop_rate=0.2),
}
ALIASES = {'Ti': 'tiny', 'S': 'small', 'M': 'medium', 'B': 'base'}


def resolve_arch(arch: str | dict) -> dict:
    """Look an arch up by name, or check one that is given as a dict.

    Args:
        arch: A name of ``ARCHS``, its alias in the paper, or a dict with the keys of such an entry.

    Returns:
        The arch with every value checked, sequences as tuples.

    Raises:
        TypeError: If ``arch``, or a value in it, is of the wrong kind.
        ValueError: If the name is unknown, a key is missing or unknown, or a value is invalid.
    """
    if isinstance(arch, str):
        name = ALIASES.get(arch, arch)
        if name not in ARCHS:
            raise ValueError(
                f'arch {arch!r} is unknown; choose one of {[*ARCHS, *ALIASES]} or give a dict'
            )
        return dict(ARCHS[name])
    if not isinstance(arch, dict):
        raise TypeError(f'arch must be a name or a dict, got {type(arch).__name__}: {arch!r}')
    keys = set(ARCHS['tiny'])
    if set(arch) != keys:
        missing, unknown = sorted(keys - set(arch)), sorted(map(str, set(arch) - keys))
        raise ValueError(
            f'arch needs exactly the keys {sorted(keys)}; missing {missing}, unknown {unknown}'
        )
    return _check_arch(arch)


def _check_arch(arch: dict) -> dict:
    checked = dict(
        base_channels=check_integer('arch base_channels', arch['base_channels'], low=2),
        last_drop_rate=check_rate('arch last_drop_rate', arch['last_drop_rate']),
    )
    for key in ('depths', 'num_heads', 'feedforward_channels'):
        checked[key] = check_integers(f'arch {key}', arch[key], low=1, length=NUM_STAGES)
    rates = check_sequence('arch drop_rates', arch['drop_rates'], NUM_STAGES)
    checked['drop_rates'] = tuple(check_rate('arch drop_rates', rate) for rate in rates)
    pairs = check_sequence('arch window_sizes', arch['window_sizes'], NUM_STAGES)
    checked['window_sizes'] = tuple(
        check_integers('arch window_sizes', pair, low=1, length=2) for pair in pairs
    )
    for pair in checked['window_sizes']:
        if max(pair) % min(pair):
            raise ValueError(f'arch window_sizes {pair}: one must be a multiple of the other')
    channels = checked['base_channels']
    if channels % 2:
        raise ValueError(f'arch base_channels must be even, got {channels}')
    for stage, heads in enumerate(checked['num_heads']):
        width = channels * 2**stage
        if width % heads:
            raise ValueError(
                f'arch num_heads {heads} of stage {stage + 1} must divide its width {width}'
            )
    return checked
