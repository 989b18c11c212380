"""Weights for the backbone: find them in a checkpoint, check that they cover it, load them."""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from contnet_mm.checkpoint.official_keys import AVG_DOWN, convert_official, is_official
from contnet_mm.checkpoint.options import RECORD, find_record, make_record, strip_wrappers
from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.checkpoint.sources import ways_to_get
from contnet_mm.utils.errors import first_line, show_all


def load_pretrained(net: nn.Module, checkpoint: str, prefix: str | None = None) -> None:
    """Load the weights of a ConTNet from a checkpoint of any kind, wholly or not at all.

    Args:
        net: The backbone, or a part of it that has its names.
        checkpoint: A file: official, our own, or of a classifier, detector or segmentor with this
            backbone.
        prefix: Where the backbone is in the state dict, such as ``'backbone.'``; found by itself by
            default.

    Raises:
        FileNotFoundError: If the file does not exist; the message says where one comes from.
        ValueError: If the file cannot be read safely or does not cover the backbone.
    """
    try:
        content = read_checkpoint(checkpoint)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'checkpoint {checkpoint} does not exist (relative to {Path.cwd()}). '
            f'{ways_to_get(checkpoint)}. Of a file that was downloaded by hand '
            f'`python -m contnet_mm convert_checkpoint <download> {checkpoint} --classifier` '
            'makes it, or name the download itself as checkpoint: it is read as released. '
            'To train without it set init_cfg=None and freeze nothing (frozen_stages=-1, '
            'norm_eval=False)'
        ) from error
    state_dict, record = find_backbone(content, checkpoint, prefix)
    official = is_official(state_dict)
    state_dict = name_as_ours(state_dict, checkpoint)
    state_dict, resized = resize_positions(state_dict, net.state_dict())
    matched = _convert_numbers(check_coverage(state_dict, net, checkpoint), net, checkpoint)
    matched._metadata = OrderedDict({'': {RECORD: record}})
    try:
        net.load_state_dict(matched, strict=False)
    except ValueError as error:  # the options differ
        raise ValueError(f'{checkpoint}: {error}') from error
    for line in resized:
        print_log(line, 'current')
    print_log(
        f'loaded {len(matched)} of {len(net.state_dict())} tensors of {type(net).__name__} from '
        f'{checkpoint} ({"official" if official else "ours"} layout)',
        'current',
    )


def find_backbone(
    content: object, checkpoint: str, prefix: str | None = None
) -> tuple[OrderedDict[str, Tensor], dict[str, dict]]:
    """Return the tensors of the backbone in a checkpoint, by its own or official keys.

    The record of its options is returned too, an empty one where there is none.

    Args:
        content: What :func:`~contnet_mm.checkpoint.read.read_checkpoint` returned.
        checkpoint: Name of the file, for errors.
        prefix: Of the backbone's keys; by default ``backbone.`` if there are such keys.

    Raises:
        ValueError: If there is no ConTNet in it.
    """
    tensors = find_tensors(content, checkpoint)
    if prefix is None:
        prefix = 'backbone.' if any(key.startswith('backbone.') for key in tensors) else ''
    elif prefix:
        prefix = strip_wrappers(f'{prefix.rstrip(".")}.')
    backbone = OrderedDict(
        (key[len(prefix) :], value) for key, value in tensors.items() if key.startswith(prefix)
    )
    if not (is_official(backbone) or any(key.startswith('stages.') for key in backbone)):
        raise ValueError(
            f'{checkpoint} holds no ConTNet under the prefix {prefix!r}: {len(tensors)} tensors, '
            f'the first keys are {show_all(tensors or content)}; where it is deeper '
            'inside, give its prefix in init_cfg'
        )
    return backbone, find_record(tensors._metadata, prefix) or make_record({})


def name_as_ours(backbone: Mapping[str, Tensor], checkpoint: str) -> Mapping[str, Tensor]:
    """Return the tensors of a backbone by our names, whatever theirs are.

    Args:
        backbone: As :func:`find_backbone` returns it.
        checkpoint: Name of the file, for errors.

    Raises:
        ValueError: If a key is neither ours nor official.
    """
    if not is_official(backbone):
        return backbone
    try:
        return convert_official(backbone)
    except ValueError as error:
        raise ValueError(f'{checkpoint}: {error}') from error


def find_tensors(content: object, checkpoint: str) -> OrderedDict[str, Tensor]:
    """Return all tensors of a checkpoint, by keys without the prefixes of DDP and torch.compile.

    Its ``_metadata`` has a record of ConTNet's options as far as the file tells any.

    Args:
        content: What :func:`~contnet_mm.checkpoint.read.read_checkpoint` returned: a state dict, or
            one under ``state_dict`` or ``model``, however deeply nested.
        checkpoint: Name of the file, for errors.

    Raises:
        ValueError: If it held no state dict.
    """
    state_dict = _find_state_dict(content, checkpoint)
    tensors = OrderedDict(
        (strip_wrappers(str(key)), value)
        for key, value in state_dict.items()
        if isinstance(value, Tensor)
    )
    metadata = getattr(state_dict, '_metadata', None)
    metadata = metadata if isinstance(metadata, Mapping) else {}
    tensors._metadata = OrderedDict(
        (name, dict(local)) for name, local in metadata.items() if isinstance(local, Mapping)
    )
    recorded = any(RECORD in local for local in tensors._metadata.values())
    if not recorded and _proves_avg_down(content, tensors):
        whole = tensors._metadata.setdefault('', {})
        whole[RECORD] = make_record({'avg_down': True})
    return tensors


def _proves_avg_down(content: object, tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether an official key, or the note of an early converter in ``meta``, proves it."""
    for name in ('meta', 'contnet'):
        content = content.get(name) if isinstance(content, Mapping) else None
    noted = isinstance(content, Mapping) and content.get('avg_down') is True
    return noted or any(AVG_DOWN.search(key) for key in tensors)


def _find_state_dict(content: object, checkpoint: str) -> Mapping:
    if not isinstance(content, Mapping):
        raise ValueError(f'{checkpoint} holds a {type(content).__name__}, not a state dict')
    for key in ('state_dict', 'model'):
        if isinstance(content.get(key), Mapping):
            return _find_state_dict(content[key], checkpoint)
    return content


def resize_positions(
    state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> tuple[OrderedDict[str, Tensor], list[str]]:
    """Interpolate position tables of another window size.

    Args:
        state_dict: Tensors by our names.
        target: The network's own, whose shapes count.

    Returns:
        All tensors, and a line for the log about each that was resized.
    """
    resized, lines = OrderedDict(state_dict), []
    for key, table in state_dict.items():
        wanted = target.get(key)
        if not re.search(r'\.position\.(rows|columns|table)$', key) or wanted is None:
            continue
        if wanted.shape == table.shape or table.dim() != 2 or wanted.shape[1] != table.shape[1]:
            continue
        if not (len(table) and table.is_floating_point()):
            continue
        square = key.endswith('table')
        if square and math.isqrt(len(table)) ** 2 != len(table):  # of no window at all
            continue
        resized[key] = _resize(table, len(wanted), square)
        lines.append(
            f'resized {key} from {[*table.shape]} to {[*wanted.shape]}: another window size'
        )
    return resized, lines


def _resize(table: Tensor, length: int, square: bool) -> Tensor:
    """Interpolate a table, [L, C] -> [length, C], along one axis, or two if L is a ``square``."""
    channels = table.shape[1]
    old, new = (math.isqrt(len(table)), math.isqrt(length)) if square else (1, 1)
    grid = table.float().t().reshape(1, channels, old, -1)
    grid = F.interpolate(grid, size=(new, length // new), mode='bicubic', align_corners=False)
    return grid.reshape(channels, length).t().to(table.dtype)


def check_coverage(
    state_dict: Mapping[str, Tensor], net: nn.Module, checkpoint: str
) -> OrderedDict[str, Tensor]:
    """Check that a state dict by our names covers a backbone.

    Returns:
        The tensors of the backbone; those of parts that it did not build are left out.

    Raises:
        ValueError: If a tensor is missing, of another shape or kind of number, or one too many in
            a part that is built.
    """
    own = net.state_dict()
    optional = {key for key in own if key.endswith('num_batches_tracked')}
    missing = [key for key in own if key not in state_dict and key not in optional]
    wrong = [
        f'{key} {_kind(state_dict[key])} instead of {_kind(value)}'
        for key, value in own.items()
        if key in state_dict and not _fits(state_dict[key], value)
    ]
    unexpected = [key for key in state_dict if key not in own and net.owns_key(key)]
    if missing or wrong or unexpected:
        found = len(own) - len(missing) - len(wrong)
        problems = (('missing', missing), ('of another kind', wrong), ('unexpected', unexpected))
        raise ValueError(
            f'{checkpoint} does not fit this {type(net).__name__}, of whose {len(own)} tensors '
            f'it covers {found}. '
            + '; '.join(f'{len(keys)} {what}: {show_all(keys)}' for what, keys in problems if keys)
            + f'. {_advice(state_dict, net)}'
        )
    return OrderedDict((key, state_dict[key]) for key in own if key in state_dict)


def _convert_numbers(
    tensors: Mapping[str, Tensor], net: nn.Module, checkpoint: str
) -> OrderedDict[str, Tensor]:
    """Return tensors as the network holds them; what cannot be copied shows before any is."""
    own, converted = net.state_dict(), OrderedDict()
    for key, value in tensors.items():
        try:
            converted[key] = torch.empty_like(own[key]).copy_(value)
        except RuntimeError as error:
            raise ValueError(f'{checkpoint}: {key} cannot be read: {first_line(error)}') from error
    return converted


def _fits(found: Tensor, expected: Tensor) -> bool:
    same_kind = found.is_floating_point() == expected.is_floating_point()
    return found.shape == expected.shape and same_kind and not found.is_complex()


def _kind(tensor: Tensor) -> str:
    return f'{[*tensor.shape]} {str(tensor.dtype).replace("torch.", "")}'


def _advice(file: Mapping[str, Tensor], net: nn.Module) -> str:
    """Name the settings in which a file and a network differ, as far as keys and shapes show."""
    built = {key: value for key, value in file.items() if net.owns_key(key)}
    theirs, ours = infer_settings(built), infer_settings(net.state_dict())
    differences = [
        f'{name} {value} in the file, {ours[name]} here'
        for name, value in theirs.items()
        if value != ours[name]
    ]
    if differences:
        return 'They differ in: ' + ', '.join(differences)
    if ours['base_channels'] is None:  # no stem, no width
        return 'depths and position agree: look at arch, norm_cfg and qkv_bias'
    return 'arch, position and deep_stem agree: look at norm_cfg, qkv_bias and out_indices'


def infer_settings(state_dict: Mapping[str, Tensor]) -> dict[str, object]:
    """Read channels, depths, position and stem off tensors by our names, where there are any."""
    stem = state_dict.get('stem.conv.weight', state_dict.get('stem.conv3.weight'))
    first = state_dict.get('stem.conv.weight', state_dict.get('stem.conv1.weight'))
    blocks = {
        match.groups() for key in state_dict if (match := re.match(r'stages\.(\d)\.(\d+)', key))
    }
    stages = Counter(int(stage) for stage, _ in blocks)
    relative = any(key.endswith('attn.position.table') for key in state_dict)
    return {
        'in_channels': None if first is None or first.dim() < 2 else first.shape[1],
        'base_channels': None if stem is None or not stem.dim() else stem.shape[0],
        'depths': [stages[stage] for stage in range(max(stages, default=-1) + 1)],
        'position': 'relative' if relative else 'absolute',
        'deep_stem': 'stem.conv.weight' not in state_dict,
    }
