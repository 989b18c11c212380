"""The record of a network's options, which travels in the metadata of its state dict.

Beside the tensors of a state dict torch keeps a dict per module (``_metadata``), saves it, and
hands it back when the module loads. A record in it holds

- ``options``: arguments that decide what the tensors mean. Some leave no trace in keys and shapes,
  so that another value would load without an error and give other maps.
- ``geometry``: arguments that may differ from one training to the next, such as strides.
- ``inferred``: evidence for those options that were not known, but concluded; see
  :mod:`contnet_mm.apis.probe`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

from contnet_mm.utils.errors import LONGEST, show

RECORD = 'contnet'  # its name in the metadata of a module
UNTOLD = ('avg_down', 'pre_norm')  # options that keys and shapes do not tell


def make_record(
    options: Mapping[str, object],
    geometry: Mapping[str, object] | None = None,
    inferred: Mapping[str, str] | None = None,
) -> dict[str, dict]:
    """Return a record of plain values; see the top of this file for its parts."""
    record = dict(options=options, geometry=geometry or {}, inferred=inferred or {})
    return {part: {key: _plain(item) for key, item in d.items()} for part, d in record.items()}


def find_record(metadata: object, prefix: str) -> dict[str, dict] | None:
    """Find the record of a network in the metadata of a state dict.

    Args:
        metadata: Local metadata by name of a module, as saved; anything else counts as empty.
        prefix: Of the network's keys. If there is no record under it, keys were renamed after the
            file was saved: the only record there is then counts.

    Returns:
        The record, or None where there is none, or more than one and none under ``prefix``.
    """
    records = {}
    for name, local in metadata.items() if isinstance(metadata, Mapping) else ():
        record = local.get(RECORD) if isinstance(local, Mapping) else None
        if isinstance(record, Mapping):
            records[strip_wrappers(f'{name}.').lstrip('.')] = record
    record = records.get(strip_wrappers(prefix))
    if record is None and len(records) == 1:
        (record,) = records.values()
    if record is None:
        return None
    parts = {part: record.get(part) for part in make_record({})}
    return {part: dict(d) if isinstance(d, Mapping) else {} for part, d in parts.items()}


def strip_wrappers(key: str) -> str:
    """Remove what DDP and torch.compile add to a key."""
    return re.sub(r'(^|\.)(?:(?:module|_orig_mod)\.)+', r'\1', key)


def metadata_being_loaded() -> object:
    """Return the metadata of the state dict that a caller of the caller is loading.

    A module is handed only what stands under its own prefix. Where keys were renamed on the way
    (MMEngine's ``revise_keys``), the names in the metadata stay the old ones, and torch's and
    MMEngine's ``load`` alone have the whole of it.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == 'load' and 'metadata' in frame.f_code.co_freevars:
            return frame.f_locals['metadata']
        frame = frame.f_back
    return None


def compare_options(
    record: Mapping[str, Mapping] | None,
    options: Mapping[str, object],
    geometry: Mapping[str, object],
) -> list[str]:
    """Compare the record of weights with the network that they shall be loaded into.

    Args:
        record: As :func:`find_record` returns it.
        options: Of the network; what the record does not hold is not compared.
        geometry: Of the network, likewise.

    Returns:
        Lines for the log: what the record does not tell, and a difference in geometry.

    Raises:
        ValueError: If an option differs.
    """
    record = record or make_record({})
    told = {k: v for k, v in record['options'].items() if type(v) in (bool, str) and k in options}
    wrong = [name for name, value in told.items() if value != options[name]]
    if wrong:
        raise ValueError(_describe_difference(wrong, told, options, record['inferred']))
    lines = []
    untold = [f'{name}={value!r}' for name, value in options.items() if name not in told]
    if untold:
        lines.append(
            f'the weights do not tell all options that they were trained with; loaded as built: '
            f'{", ".join(untold)}'
        )
    moved = [
        f'{name} {record["geometry"][name]} in the weights, {_plain(value)} here'
        for name, value in geometry.items()
        if name in record['geometry'] and _plain(record['geometry'][name]) != _plain(value)
    ]
    if moved:
        lines.append('the weights were trained with another geometry: ' + '; '.join(moved))
    return lines


def _describe_difference(
    wrong: list[str],
    told: Mapping[str, object],
    options: Mapping[str, object],
    inferred: Mapping[str, str],
) -> str:
    """Name both sides, and the way out."""
    theirs = {name: f'{name}={show(told[name])}' for name in wrong}
    sides = [f'{theirs[name]} in the weights, {options[name]!r} here' for name in wrong]
    text = (
        f'the weights were trained with other options: {"; ".join(sides)}. They would give other '
        f'maps without a further sign: set {", ".join(theirs.values())}'
    )
    guessed = [name for name in wrong if name in inferred]
    if guessed:
        reasons = '; '.join(str(inferred[name])[:LONGEST] for name in guessed)
        flags = [f'--{"" if options[n] else "no-"}{n.replace("_", "-")}' for n in guessed]
        text += (
            f'. The file did not tell {", ".join(guessed)}: inferred by probe_weights '
            f'({reasons}). If you know better, convert '
            f'the original file again with {" ".join(flags)}'
        )
    return text


def _plain(value: object) -> object:
    """Return a value with lists in place of tuples, as files in JSON have them."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
