"""The archs of the paper and the checks of what a user passes to the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

NUM_STAGES = 4

# Paper table 1; widths, heads and dropout per stage as in the released network.
ARCHS = {
    'tiny': dict(
        base_channels=48,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 4, 8),
        feedforward_channels=(196, 392, 768, 768),
        window_sizes=((7, 14), (7, 14), (7, 14), (7, 7)),
        drop_rates=(0.0, 0.0, 0.0, 0.0),
        last_drop_rate=0.0,
    ),
    'small': dict(
        base_channels=64,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 4, 8),
        feedforward_channels=(256, 512, 1024, 1024),
        window_sizes=((7, 14), (7, 14), (7, 14), (7, 7)),
        drop_rates=(0.0, 0.0, 0.0, 0.0),
        last_drop_rate=0.0,
    ),
    'medium': dict(
        base_channels=64,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        feedforward_channels=(256, 512, 1024, 1024),
        window_sizes=((7, 14), (7, 14), (7, 14), (7, 7)),
        drop_rates=(0.0, 0.0, 0.0, 0.0),
        last_drop_rate=0.0,
    ),
    'base': dict(
        base_channels=64,
        depths=(3, 4, 6, 3),
        num_heads=(1, 2, 4, 8),
        feedforward_channels=(256, 512, 1024, 1024),
        window_sizes=((7, 14), (7, 14), (7, 14), (7, 7)),
        drop_rates=(0.0, 0.0, 0.1, 0.1),
        last_drop_rate=0.2,
    ),
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
        ValueError: If the name is unknown, a key is missing or unknown, or a value cannot be.
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
        last_drop_rate=_check_rate('arch last_drop_rate', arch['last_drop_rate']),
    )
    for key in ('depths', 'num_heads', 'feedforward_channels'):
        checked[key] = check_integers(f'arch {key}', arch[key], low=1, length=NUM_STAGES)
    rates = _check_sequence('arch drop_rates', arch['drop_rates'], NUM_STAGES)
    checked['drop_rates'] = tuple(_check_rate('arch drop_rates', rate) for rate in rates)
    pairs = _check_sequence('arch window_sizes', arch['window_sizes'], NUM_STAGES)
    checked['window_sizes'] = tuple(
        check_integers('arch window_sizes', pair, low=1, length=2) for pair in pairs
    )
    for pair in checked['window_sizes']:
        if max(pair) % min(pair):
            raise ValueError(
                f'arch window_sizes {pair}: one window must be a multiple of the other'
            )
    channels = checked['base_channels']
    if channels % 2:
        raise ValueError(f'arch base_channels must be even, got {channels}')
    for stage, heads in enumerate(checked['num_heads']):
        if channels * 2**stage % heads:
            raise ValueError(
                f'arch num_heads {heads} of stage {stage + 1} must divide its width '
                f'{channels * 2**stage}'
            )
    return checked


def check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value`` if it is an integer in [low, high].

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{name} must be an integer, got {type(value).__name__}: {value!r}')
    if value < low or (high is not None and value > high):
        allowed = f'at least {low}' if high is None else f'from {low} to {high}'
        raise ValueError(f'{name} must be {allowed}, got {value}')
    return int(value)


def check_integers(
    name: str, values: object, low: int, high: int | None = None, length: int | None = None
) -> tuple[int, ...]:
    """Return ``values`` as a tuple if they are integers in [low, high], ``length`` of them.

    Raises:
        TypeError: If it is not a sequence of integers.
        ValueError: If there are too few or too many, or one is out of range.
    """
    return tuple(
        check_integer(name, value, low, high) for value in _check_sequence(name, values, length)
    )


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False.

    Raises:
        TypeError: If it is anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, got {type(value).__name__}: {value!r}')
    return value


def _check_sequence(name: str, values: object, length: int | None) -> Sequence:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(
            f'{name} must be a tuple or a list, got {type(values).__name__}: {values!r}'
        )
    if length is not None and len(values) != length:
        raise ValueError(f'{name} must have {length} entries, got {len(values)}: {values!r}')
    return values


def _check_rate(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'{name} must be a number, got {type(value).__name__}: {value!r}')
    if not 0 <= value < 1:
        raise ValueError(f'{name} must be at least 0 and below 1, got {value}')
    return float(value)
