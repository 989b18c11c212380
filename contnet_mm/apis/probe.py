"""Ask weights for the options that keys and shapes do not tell.

Each batch norm remembers mean and variance of what arrived in training. Images go through the
network once per combination of the untold options, and what arrives is compared with what is
remembered.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from contnet_mm.checkpoint.options import UNTOLD
from contnet_mm.models.contnet import ConTNet

BATCH = 8
EPS = 1e-5  # of batch norm
FLOOR = 0.05  # of the noise of a logarithm of a variance, in one channel
FREE = 10.0  # the same for all channels together: contrast tells nothing
# What a verdict asks for: standard errors between a position and the middle, how far a position may
# lie below 0 or above 1, and the mean distance of the combination that fits best.
MIN_MARGIN = 4.0
MAX_BEYOND = 1.0
MAX_DISTANCE = 1.0


@dataclass(frozen=True)
class Arrival:
    """What arrives at a batch norm.

    Attributes:
        mean: Of each channel, [C].
        var: Of each channel, [C].
        spread: Deviation of each crop's variance from that of all, relative to it, [N, C]; what a
            norm remembers has none.
    """

    mean: Tensor
    var: Tensor
    spread: Tensor | None = None


@dataclass(frozen=True)
class Probe:
    """What a comparison of the untold options has shown.

    Attributes:
        known: Options that were not asked for.
        norms: Names of the batch norms.
        distances: Between arrival and memory at each norm, by the values of ``UNTOLD``.
        positions: By name of an option: where the memory lies on the way from False (0) to True
            (1), and its standard error.
        reason: Why nothing can be told at all, if so.
    """

    known: Mapping[str, bool]
    norms: list[str]
    distances: Mapping[tuple[bool, ...], list[float]]
    positions: Mapping[str, tuple[float, float]]
    reason: str = ''

    def margin(self, option: str) -> float:
        """Return the standard errors between a position and the middle."""
        position, error = self.positions[option]
        return abs(position - 0.5) / error

    def verdict(self) -> dict[str, bool]:
        """Return the options that can be told."""
        return {
            option: position > 0.5
            for option, (position, _) in self.positions.items()
            if self.fits()
            and self.margin(option) >= MIN_MARGIN
            and abs(position - 0.5) <= 0.5 + MAX_BEYOND
        }

    def fits(self) -> bool:
        """Tell whether any combination explains what is remembered."""
        return min(map(_mean, self.distances.values()), default=math.inf) <= MAX_DISTANCE

    def evidence(self) -> dict[str, str]:
        """Return a phrase about each option that can be told."""
        return {option: self._describe(option) for option in self.verdict()}

    def report(self) -> list[str]:
        """Return the table of distances and the verdict."""
        if self.reason:
            asked = (option for option in UNTOLD if option not in self.known)
            return [f'cannot tell {", ".join(asked)}: {self.reason}']
        lines = ['distance between what arrives at each batch norm and what it remembers']
        lines.append(
            '  '.join([*UNTOLD, 'mean', *(name.removeprefix('stages.') for name in self.norms)])
        )
        for values, distances in sorted(self.distances.items(), key=lambda i: _mean(i[1])):
            flags = [
                str(value).ljust(len(name)) for name, value in zip(UNTOLD, values, strict=True)
            ]
            columns = (f'{d:.2f}' for d in [_mean(distances), *distances])
            lines.append('  '.join([*flags, *columns]))
        told = self.verdict()
        for option in self.positions:
            what = f'{option}={told[option]}' if option in told else f'{option}: cannot tell'
            lines.append(f'{what} ({self._describe(option)})')
        if not self.fits():
            lines.append('no combination fits: these are other images than those of the training')
        return lines

    def _describe(self, option: str) -> str:
        position, error = self.positions[option]
        return (
            f'{position:.2f} +- {error:.2f} of the way from False to True, margin '
            f'{self.margin(option):.1f}'
        )


def probe(
    state_dict: Mapping[str, Tensor],
    options: Mapping[str, object],
    known: Mapping[str, bool],
    crops: Tensor,
) -> Probe:
    """Compare the untold options of a whole backbone.

    Args:
        state_dict: Its tensors by our names.
        options: Arguments of ConTNet that keys and shapes tell.
        known: Those of ``UNTOLD`` that are known and not asked for.
        crops: Images, normalised as in its training, [N, C, H, W].
    """
    memory = _read_memory(state_dict)
    untouched = [name for name, norm in memory.items() if not norm.mean.any()]
    if untouched:
        reason = f'{untouched[0]} remembers nothing, no image went through it in training'
        return Probe(known, [*memory], {}, {}, reason)
    arrivals = {
        values: _measure(state_dict, {**options, **dict(zip(UNTOLD, values, strict=True))}, crops)
        for values in product(*((known[o],) if o in known else (False, True) for o in UNTOLD))
    }
    distances = {
        values: [_distance(arrival[name], memory[name]) for name in memory]
        for values, arrival in arrivals.items()
    }
    best = min(distances, key=lambda values: _mean(distances[values]))
    positions = {}
    for i, option in enumerate(UNTOLD):
        if option not in known:
            ends = [arrivals[best[:i] + (value,) + best[i + 1 :]] for value in (False, True)]
            positions[option] = _position(*ends, memory)
    return Probe(known, [*memory], distances, positions)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _read_memory(state_dict: Mapping[str, Tensor]) -> dict[str, Arrival]:
    """Return what each batch norm of a block remembers; those of the stem depend on no option."""
    matches = (re.fullmatch(r'(stages\..+)\.running_mean', key) for key in state_dict)
    return {
        match[1]: Arrival(
            mean=state_dict[match[0]].double(),
            var=state_dict[f'{match[1]}.running_var'].double() + EPS,
        )
        for match in matches
        if match
    }


def _measure(
    state_dict: Mapping[str, Tensor], options: Mapping[str, object], crops: Tensor
) -> dict[str, Arrival]:
    """Run the images through a network; return what arrives at each of its batch norms."""
    net = ConTNet(**options, out_indices=(3,)).eval()
    tensors = OrderedDict(state_dict)
    tensors._metadata = net.state_dict()._metadata  # the options are tried, not told
    net.load_state_dict(tensors)
    moments: dict[str, list[Tensor]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].double()
            both = torch.stack([x.mean((2, 3)), x.square().mean((2, 3))])
            moments.setdefault(name, []).append(both)

        return hook

    for name in _read_memory(state_dict):
        net.get_submodule(name).register_forward_pre_hook(record(name))
    with torch.inference_mode():
        for batch in crops.split(BATCH):
            net(batch)
    arrivals = {}
    for name, parts in moments.items():
        means, squares = torch.cat(parts, 1)
        mean = means.mean(0)
        of_crops = squares - 2 * means * mean + mean.square()  # around the mean of all
        var = of_crops.mean(0) + EPS
        arrivals[name] = Arrival(mean, var, of_crops / var - 1)
    return arrivals


def _distance(arrival: Arrival, memory: Arrival) -> float:
    """Return the root mean square, over channels, of the shifts of mean and standard deviation."""
    shift = (arrival.mean - memory.mean) / memory.var.sqrt()
    scale = (arrival.var / memory.var).log() / 2
    return float((shift.square() + scale.square()).mean().sqrt())


def _position(
    off: Mapping[str, Arrival], on: Mapping[str, Arrival], memory: Mapping[str, Arrival]
) -> tuple[float, float]:
    """Find where the memory lies on the line from one network's arrivals to another's.

    Generalised least squares over the logarithms of the variances: the directions in which crops
    differ from each other count little, since the images of the training differed from ours in the
    same directions. Each norm counts as its own residuals allow.

    Returns:
        The position, 0 for ``off`` and 1 for ``on``, and its standard error.
    """
    total = weight = 0.0
    for name, remembered in memory.items():
        line = (on[name].var / off[name].var).log()
        if line.abs().max() < 1e-6:  # the option has no effect yet
            continue
        found = (remembered.var / off[name].var).log()
        spread = off[name].spread / len(off[name].spread) ** 0.5
        rows = torch.cat([spread, torch.full_like(spread[:1], FREE)])
        noise = rows.t() @ rows + FLOOR**2 * torch.eye(len(line), dtype=line.dtype)
        scaled = torch.linalg.solve(noise, torch.stack([line, found], 1))
        length = float(line @ scaled[:, 0])
        position = float(line @ scaled[:, 1]) / length
        residual = found - position * line
        misfit = float(residual @ (scaled[:, 1] - position * scaled[:, 0])) / len(line)
        total += position * length / misfit
        weight += length / misfit
    return total / weight, weight**-0.5
