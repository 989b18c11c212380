"""Official names of the tensors of a ConTNet to ours and back."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from contnet_mm.utils.errors import show, show_all

# Official key and ours. s: stage, b: block, e: encoder, i: layer of the deep stem, p: parameter.
_STE, _OURS = 'layer{s}.ConTBlock{b}.ste{e}.', 'stages.{s}.{b}.encoders.{e}.'
_NAMES = [
    ('layer0.conv.conv.weight', 'stem.conv.weight'),
    ('layer0.conv_bn{i}.conv.weight', 'stem.conv{i}.weight'),
    ('layer0.conv_bn{i}.bn.{any}', 'stem.norm{i}.{any}'),
    ('layer{s}.ConTBlock{b}.bn.{any}', 'stages.{s}.{b}.norm.{any}'),
    ('layer{s}.ConTBlock{b}.out_conv.conv.weight', 'stages.{s}.{b}.conv.weight'),
    ('layer{s}.ConTBlock{b}.downsample.conv.weight', 'stages.{s}.{b}.downsample.weight'),
    ('layer{s}.ConTBlock{b}.downsample.conv.conv.weight', 'stages.{s}.{b}.downsample.weight'),
    (_STE + 'pe.0', _OURS + 'position.rows'),
    (_STE + 'pe.1', _OURS + 'position.columns'),
    (_STE + 'attn.relative_position_bias_table', _OURS + 'attn.position.table'),
    (_STE + 'attn.{linear}.{p}', _OURS + 'attn.{linear}.{p}'),
    (_STE + 'mlp.{fc}.{p}', _OURS + 'ffn.{fc}.{p}'),
    (_STE + '{norm}.{p}', _OURS + '{norm}.{p}'),
]
_FIELDS = {'b': r'\d+', 'i': '[123]', 'p': 'weight|bias', 'any': '.+'}
_FIELDS.update(linear='qkv|proj', fc='fc[12]', norm='norm[12]')
# Stages and encoders count from 1 there and from 0 here.
_OFFICIAL_FIELDS = {**_FIELDS, 's': '[1-4]', 'e': '[12]'}
_OUR_FIELDS = {**_FIELDS, 's': '[0-3]', 'e': '[01]'}


def _compile(template: str, fields: Mapping[str, str]) -> re.Pattern:
    def group(match: re.Match) -> str:
        return f'(?P<{match[1]}>{fields[match[1]]})'

    return re.compile(re.sub(r'\\\{(\w+)\\\}', group, re.escape(template)))


_TO_OURS = [(_compile(theirs, _OFFICIAL_FIELDS), ours) for theirs, ours in _NAMES]
_TO_OFFICIAL = [(_compile(ours, _OUR_FIELDS), theirs) for theirs, ours in _NAMES]
_BLOCK = r'layer([1-4])\.ConTBlock(\d+)\.'
# Classifiers are no part of the backbone; the index follows from the window size.
IGNORED = re.compile(r'(fc|head|neck)\..+|.+\.relative_position_index')
AVG_DOWN = re.compile(_BLOCK + r'downsample\.conv\.conv\.weight')


def is_official(state_dict: Mapping[str, Tensor]) -> bool:
    """Tell whether the keys are those of the official network."""
    return any(re.match(r'layer0\.|' + _BLOCK, key) for key in state_dict)


def convert_official(state_dict: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Rename the tensors of the official network to our names; the classifier is left out.

    Tables of the absolute position lose their two axes of length 1.

    Args:
        state_dict: Tensors by official name (without ``module.``).

    Raises:
        ValueError: If a key is not one of the official network, or two mean the same tensor.
    """
    converted: OrderedDict[str, Tensor] = OrderedDict()
    kept = [key for key in state_dict if not IGNORED.fullmatch(key)]
    for key, name in _rename(kept, _TO_OURS, shift=-1, network='the official ConTNet'):
        if name in converted:
            raise ValueError(f'{show(key)} is there twice, under another official name too')
        value = state_dict[key]
        is_table = name.endswith(('.position.rows', '.position.columns')) and value.dim()
        converted[name] = value.reshape(-1, value.shape[-1]) if is_table else value
    return converted


def convert_to_official(
    state_dict: Mapping[str, Tensor], avg_down: bool = False
) -> OrderedDict[str, Tensor]:
    """Rename our tensors to the names of the official network: undo :func:`convert_official`.

    The index of the relative position is added, which the official network keeps beside its tables.

    Args:
        state_dict: Tensors of the backbone by our names.
        avg_down: Whether the backbone was built so; it decides a name, which ours does not tell.

    Raises:
        ValueError: If a key is none of ours.
    """
    converted: OrderedDict[str, Tensor] = OrderedDict()
    for key, name in _rename(state_dict, _TO_OFFICIAL, shift=1, network='ConTNet'):
        value = state_dict[key]
        if avg_down and not name.startswith('layer4.'):
            name = name.replace('.downsample.conv.', '.downsample.conv.conv.')
        if name.endswith('.pe.0'):
            value = value[None, :, None]  # [p, C / 2] -> [1, p, 1, C / 2]
        elif name.endswith('.pe.1'):
            value = value[None, None]  # [p, C / 2] -> [1, 1, p, C / 2]
        converted[name] = value
        if name.endswith('.relative_position_bias_table'):
            index = name.replace('_bias_table', '_index')
            converted[index] = _relative_index((math.isqrt(len(value)) + 1) // 2)
    return converted


def _rename(
    keys: Iterable[str], rules: list[tuple[re.Pattern, str]], shift: int, network: str
) -> list[tuple[str, str]]:
    """Return pairs of a key and its new name, in which stages and encoders count from elsewhere."""
    pairs, unknown = [], []
    for key in keys:
        matches = ((pattern.fullmatch(key), template) for pattern, template in rules)
        match, template = next(((m, template) for m, template in matches if m), (None, ''))
        if match is None:
            unknown.append(key)
            continue
        fields = match.groupdict()
        fields.update({name: int(fields[name]) + shift for name in 'se' if name in fields})
        pairs.append((key, template.format(**fields)))
    if unknown:
        raise ValueError(
            f'{len(unknown)} keys are not of {network}, the first are {show_all(unknown)}'
        )
    return pairs


def _relative_index(window: int) -> Tensor:
    """Return the row of the bias table for each query and key of a window, [P, P]."""
    index = torch.arange(window * window)
    row, column = index // window, index % window
    down = row[:, None] - row[None] + window - 1
    right = column[:, None] - column[None] + window - 1
    return down * (2 * window - 1) + right
