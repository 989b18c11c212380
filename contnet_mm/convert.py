"""Official ConTNet keys to ours: pure functions over state dicts."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

BLOCK = r'layer([1-4])\.ConTBlock(\d+)\.'
STE = BLOCK + r'ste([12])\.'

# Official key -> ours. Stages count from 1 there and from 0 here.
_RULES = [
    (r'layer0\.conv\.conv\.weight', 'stem.conv.weight'),
    (r'layer0\.conv_bn([123])\.conv\.weight', r'stem.conv\1.weight'),
    (r'layer0\.conv_bn([123])\.bn\.(.+)', r'stem.norm\1.\2'),
    (BLOCK + r'bn\.(.+)', r'stages.{stage}.\2.norm.\3'),
    (BLOCK + r'out_conv\.conv\.weight', r'stages.{stage}.\2.conv.weight'),
    (BLOCK + r'downsample\.(?:conv\.)?conv\.weight', r'stages.{stage}.\2.downsample.weight'),
    (STE + r'pe\.0', r'stages.{stage}.\2.encoders.{encoder}.position.rows'),
    (STE + r'pe\.1', r'stages.{stage}.\2.encoders.{encoder}.position.columns'),
    (
        STE + r'attn\.relative_position_bias_table',
        r'stages.{stage}.\2.encoders.{encoder}.attn.position.table',
    ),
    (STE + r'attn\.(qkv|proj)\.(weight|bias)', r'stages.{stage}.\2.encoders.{encoder}.attn.\4.\5'),
    (STE + r'mlp\.(fc[12])\.(weight|bias)', r'stages.{stage}.\2.encoders.{encoder}.ffn.\4.\5'),
    (STE + r'(norm[12])\.(weight|bias)', r'stages.{stage}.\2.encoders.{encoder}.\4.\5'),
]
RULES = [(re.compile(pattern), template) for pattern, template in _RULES]
# Classifiers are no part of the backbone; the index follows from the window size.
IGNORED = re.compile(r'(fc|head|neck)\..+|.+\.relative_position_index')
AVG_DOWN = re.compile(BLOCK + r'downsample\.conv\.conv\.weight')


def is_official(state_dict: Mapping[str, Tensor]) -> bool:
    """Tell whether the keys are those of the official network."""
    return any(re.match(r'layer0\.|' + BLOCK, key) for key in state_dict)


def convert_official(state_dict: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Rename the tensors of the official network to our names; the classifier is left out.

    Args:
        state_dict: Tensors by official name (without ``module.``).

    Returns:
        The same tensors by our names; the tables of the absolute position lose their two axes of
        length 1.

    Raises:
        ValueError: If a key is not one of the official network, or two mean the same tensor.
    """
    converted: OrderedDict[str, Tensor] = OrderedDict()
    unknown = []
    for key, value in state_dict.items():
        if IGNORED.fullmatch(key):
            continue
        name = _rename(key)
        if name is None:
            unknown.append(key)
        elif name in converted:
            raise ValueError(f'{key} is there twice, under another official name too')
        else:
            is_table = name.endswith(('.position.rows', '.position.columns'))
            converted[name] = value.reshape(-1, value.shape[-1]) if is_table else value
    if unknown:
        raise ValueError(
            f'{len(unknown)} keys are not of the official ConTNet, the first are {unknown[:5]}'
        )
    return converted


def _rename(key: str) -> str | None:
    for pattern, template in RULES:
        match = pattern.fullmatch(key)
        if match is None:
            continue
        if '{stage}' in template:
            template = template.replace('{stage}', str(int(match[1]) - 1))
        if '{encoder}' in template:
            template = template.replace('{encoder}', str(int(match[3]) - 1))
        return match.expand(template)
    return None
