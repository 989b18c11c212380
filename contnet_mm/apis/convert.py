"""Convert checkpoints of ConTNet between layouts: official, backbone alone, classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from contnet_mm.apis.infer_arch import infer_arch
from contnet_mm.apis.probe import probe
from contnet_mm.checkpoint.load import (
    check_coverage,
    find_backbone,
    find_tensors,
    name_as_ours,
)
from contnet_mm.checkpoint.official_keys import convert_to_official, is_official
from contnet_mm.checkpoint.options import RECORD, UNTOLD, make_record
from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.checkpoint.write import check_suffix, encode_checkpoint
from contnet_mm.models.arch import resolve_arch
from contnet_mm.models.contnet import ConTNet
from contnet_mm.utils.files import write_file
from contnet_mm.version import __version__

LAYOUTS = {
    'backbone': 'backbone alone, by our names',
    'classifier': 'MMPretrain classifier (backbone.*, head.fc.*)',
    'official': 'official network',
}


@dataclass(frozen=True)
class Network:
    """A whole ConTNet in a file.

    Attributes:
        layout: A key of ``LAYOUTS``, or ``'detector or other'``.
        backbone: Tensors by our names.
        head: ``weight`` [classes, C] and ``bias`` [classes] of the classifier, as far as given.
        options: Arguments of ConTNet that keys and shapes tell.
        record: The rest, as far as it is recorded; see :mod:`contnet_mm.checkpoint.options`.
        out_channels: Channels C of the last map.
        num_others: Number of further tensors in the file.
    """

    layout: str
    backbone: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    options: Mapping[str, object]
    record: Mapping[str, Mapping]
    out_channels: int
    num_others: int

    def report(self) -> list[str]:
        """Say what was read, and what keys and shapes tell."""
        classes = f', classifier of {len(self.head["weight"])} classes' if self.has_head() else ''
        others = f', {self.num_others} tensors of other parts' if self.num_others else ''
        options = ', '.join(f'{name} {value}' for name, value in self.options.items())
        return [
            f'read: {LAYOUTS.get(self.layout, self.layout)}; backbone of {len(self.backbone)} '
            f'tensors{classes}{others}',
            f'told by keys and shapes: {options}',
        ]

    def has_head(self) -> bool:
        """Tell whether there is a classifier that fits the backbone."""
        weight, bias = self.head.get('weight'), self.head.get('bias')
        if weight is None or bias is None or weight.dim() != 2:
            return False
        return weight.shape[1] == self.out_channels and bias.shape == weight.shape[:1]


def read_network(path: str | Path) -> Network:
    """Read a whole ConTNet from a checkpoint of any kind.

    Raises:
        ValueError: If a tensor of the network is missing, of another shape or one too many; and as
            :func:`~contnet_mm.checkpoint.read.read_checkpoint`, like all other errors.
    """
    content = read_checkpoint(path)
    tensors = find_tensors(content, str(path))
    found, record = find_backbone(content, str(path))
    official = is_official(found)
    holder, prefix = (found, 'fc.') if official else (tensors, 'head.fc.')
    head = {key[len(prefix) :]: value for key, value in holder.items() if key.startswith(prefix)}
    backbone = name_as_ours(found, str(path))
    options = infer_arch(backbone, str(path))
    try:
        with torch.device('meta'):  # names and shapes will do
            net = ConTNet(**options)
    except ValueError as error:
        raise ValueError(f'{path} is of no arch that can be built: {error}') from error
    backbone = check_coverage(backbone, net, str(path))
    num_others = 0 if official else len(tensors) - len(backbone) - len(head)
    layout = 'classifier' if head else 'backbone'
    return Network(
        layout='official' if official else 'detector or other' if num_others else layout,
        backbone=backbone,
        head=head,
        options=options,
        record=record,
        out_channels=net.out_channels[-1],
        num_others=num_others,
    )


def convert_file(
    source: str | Path,
    target: str | Path,
    layout: str = 'backbone',
    overwrite: bool = False,
    stated: Mapping[str, bool] | None = None,
    crops: Tensor | None = None,
) -> list[str]:
    """Write the ConTNet of one checkpoint file into another, in another layout or kind of file.

    Args:
        source: The file to read.
        target: The file to write, ``.pth``, ``.pt`` or ``.safetensors``.
        layout: A key of ``LAYOUTS``. The official layout takes the classifier along, if any.
        overwrite: Replace ``target`` if it exists.
        stated: What you know of the options in ``UNTOLD``; it wins over all that the file tells.
        crops: Images to infer from what neither you nor the file tells; see
            :func:`~contnet_mm.apis.probe.probe`. Without them it stays open.

    Returns:
        Lines about what was read and written.

    Raises:
        ValueError: If ``target`` exists, or ``source`` has no classifier where one is asked for, or
            is of the layout and kind already; and as :func:`read_network`.
    """
    if layout not in LAYOUTS:
        raise ValueError(f'layout must be one of {[*LAYOUTS]}, got {layout!r}')
    suffix = check_suffix(target)
    target = Path(target)
    if target.exists():
        given = Path(source).expanduser()
        if given.exists() and target.samefile(given):
            raise ValueError(f'{target} is the file to convert: give another name')
        if not overwrite:
            raise ValueError(f'{target} exists: give another name or --overwrite')
    network = read_network(source)
    in_safetensors = Path(source).suffix == '.safetensors'
    if layout == network.layout and in_safetensors == (suffix == '.safetensors'):
        raise ValueError(
            f'{source} is one already: {LAYOUTS[layout]}; nothing to convert (cp copies it, '
            'tools/publish_checkpoint.py drops the optimizer)'
        )
    if network.head and not network.has_head() and layout != 'backbone':
        shapes = {key: [*value.shape] for key, value in network.head.items()}
        raise ValueError(
            f'the classifier of {source} does not fit the backbone: expected weight [classes, '
            f'{network.out_channels}] and bias [classes], got {shapes}'
        )
    if layout == 'classifier' and not network.head:
        raise ValueError(f'{source} holds no classifier, so that only its backbone can be written')
    record, lines = complete_record(network, stated or {}, crops)
    avg_down = record['options'].get('avg_down', False)
    state_dict = rename_tensors(network.backbone, network.head, layout, avg_down)
    name = 'backbone' if layout == 'classifier' else ''
    state_dict._metadata = OrderedDict({name: {RECORD: record}})
    meta = {'converted_from': Path(source).name, 'contnet_mm_version': __version__}
    data = encode_checkpoint(state_dict, None if layout == 'official' else meta, suffix)
    write_file(target, data)
    written = f'wrote {target}: {LAYOUTS[layout]}, {len(state_dict)} tensors'
    return [*network.report(), *lines, written]


def complete_record(
    network: Network, stated: Mapping[str, bool], crops: Tensor | None
) -> tuple[dict[str, dict], list[str]]:
    """Bring together all that is known of a network's options.

    Args:
        network: What was read.
        stated: What the user says, by names in ``UNTOLD``.
        crops: Images to probe with for the rest, or None.

    Returns:
        The record to write, and lines about where its options come from.

    Raises:
        ValueError: If ``stated`` names another option.
    """
    if not set(stated) <= set(UNTOLD):
        raise ValueError(f'stated options must be of {[*UNTOLD]}, got {dict(stated)}')
    told = {name: network.options[name] for name in ('position', 'qkv_bias', 'deep_stem')}
    arch = resolve_arch(network.options['arch'])
    geometry = {'window_sizes': arch['window_sizes'], **network.record['geometry']}
    recorded = {k: v for k, v in network.record['options'].items() if k in UNTOLD}
    inferred = {k: v for k, v in network.record['inferred'].items() if k not in stated}
    lines = [
        _list_options('recorded in the file', recorded),
        _list_options('stated by you', stated),
    ]
    known = {**recorded, **stated}
    if crops is not None and not set(UNTOLD) <= set(known):
        found = probe(network.backbone, network.options, known, crops)
        inferred.update(found.evidence())
        known.update(found.verdict())
        lines += found.report()
    untold = [name for name in UNTOLD if name not in known]
    if not isinstance(network.options['arch'], str):
        untold += ['drop_rates', 'last_drop_rate']
        untold += ['num_heads'] * (network.options['position'] == 'absolute')
    if untold:
        lines.append(f'not told, yours to say in the config: {", ".join(untold)}')
    return make_record({**told, **known}, geometry, inferred), [line for line in lines if line]


def _list_options(source: str, options: Mapping[str, bool]) -> str:
    return f'{source}: ' + ', '.join(f'{k} {v}' for k, v in options.items()) if options else ''


def rename_tensors(
    backbone: Mapping[str, Tensor], head: Mapping[str, Tensor], layout: str, avg_down: bool
) -> OrderedDict[str, Tensor]:
    """Name the tensors of a network as a layout does.

    Args:
        backbone: Tensors by our names.
        head: ``weight`` and ``bias`` of the classifier; left out of ``'backbone'``.
        layout: A key of ``LAYOUTS``.
        avg_down: Whether the network was trained with it; names in the official layout.
    """
    if layout == 'backbone':
        return OrderedDict(backbone)
    if layout == 'official':
        state_dict = convert_to_official(backbone, avg_down)
        prefix = 'fc.'
    else:
        state_dict = OrderedDict((f'backbone.{key}', value) for key, value in backbone.items())
        prefix = 'head.fc.'
    state_dict.update((prefix + key, value) for key, value in head.items())
    return state_dict
