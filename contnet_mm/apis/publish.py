"""Make small files to share from the checkpoints of a training, named by their content."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from contnet_mm.apis.config import CONFIG_SUFFIXES
from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.checkpoint.write import SUFFIXES, encode_checkpoint
from contnet_mm.utils.files import write_file

# The text of the config stays out: it holds paths of the machine that trained.
KEPT_META = ('epoch', 'iter', 'seed', 'mmengine_version', 'dataset_meta')
KEPT_META += ('contnet', 'converted_from', 'contnet_mm_version')
HASH_LENGTH = 8  # as in OpenMMLab's and torchvision's file names


def publish_checkpoint(
    source: str | Path,
    prefix: str | Path,
    suffix: str = '.pth',
    day: datetime.date | None = None,
) -> tuple[Path, list[str]]:
    """Write the weights of a training's checkpoint as ``{prefix}_{YYYYMMDD}-{hash}{suffix}``.

    The hash is the start of the SHA-256 of the file; equal weights and meta give equal bytes with
    one version of torch. Optimizer, schedulers, log history and the text of the config are left
    out, and raw weights beside averaged ones, since the Runner tests the averaged.

    Args:
        source: A checkpoint that MMEngine's Runner saved.
        prefix: Folder and name of the new file, or a config (a name in one of
            ``CONFIG_SUFFIXES``) whose name it gets, beside ``source``.
        suffix: ``'.pth'`` or ``'.safetensors'``.
        day: Day in the name; today by default.

    Returns:
        The new file, and lines about what is in it.

    Raises:
        FileNotFoundError: If there is no ``source``.
        ModuleNotFoundError: If safetensors is needed and not installed.
        ValueError: If ``source`` cannot be read safely or holds no ``state_dict``.
    """
    content = read_checkpoint(source)
    state_dict = content.get('state_dict') if isinstance(content, Mapping) else None
    if not isinstance(state_dict, Mapping) or not state_dict:
        held = [*content][:5] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"{source} holds no 'state_dict' as MMEngine's Runner saves it, but {held}; official "
            'files go through tools/convert_checkpoint.py'
        )
    prefix = Path(prefix)
    if prefix.suffix in CONFIG_SUFFIXES:
        prefix = Path(source).expanduser().parent / prefix.stem
    elif prefix.suffix in SUFFIXES:
        prefix = prefix.with_suffix('')
    if not prefix.name or prefix.is_dir():
        raise ValueError(f'{prefix} must end in the name of the new file, not in a folder')
    given = content.get('meta')
    meta, left_out = select_meta(given if isinstance(given, Mapping) else {})
    try:
        data = encode_checkpoint(state_dict, {'config': prefix.name, **meta}, suffix)
    except ValueError as error:  # not all are tensors
        raise ValueError(f'{source}: {error}') from error
    day = (day or datetime.date.today()).strftime('%Y%m%d')
    digest = hashlib.sha256(data).hexdigest()[:HASH_LENGTH]
    path = prefix.with_name(f'{prefix.name}_{day}-{digest}{suffix}')
    write_file(path, data)
    check_published(path)
    dropped = sorted(map(str, set(content) - {'state_dict', 'meta'}))
    lines = [
        f'kept: state_dict ({len(state_dict)} tensors), meta {["config", *meta]}',
        f'left out: {dropped}, of meta {left_out}',
    ]
    if 'ema_state_dict' in content:
        lines.append('EMA: published are the averaged weights, which the Runner tests, not the raw')
    return path, lines


def check_published(path: str | Path) -> str:
    """Return the hash in the name of a published file if its content still has it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the name has no hash, or that of another content.
    """
    path = Path(path)
    match = re.search(rf'-([0-9a-f]{{{HASH_LENGTH}}})$', path.stem)
    if match is None:
        raise ValueError(f'{path} has no hash in its name, such as name_20260131-0123abcd.pth')
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:HASH_LENGTH]
    if found != match[1]:
        raise ValueError(f'{path} is damaged: its SHA-256 starts with {found}, not {match[1]}')
    return found


def select_meta(meta: Mapping) -> tuple[dict, list[str]]:
    """Return what may be published of the ``meta`` that a Runner saved, and names of the rest.

    Kept are plain values under ``KEPT_META``, in a mapping each by itself.
    """
    kept, left_out = {}, [str(key) for key in meta if key not in KEPT_META]
    for key in KEPT_META:
        value = meta.get(key)
        if isinstance(value, Mapping):
            odd = [name for name in value if not (_is_plain(name) and _is_plain(value[name]))]
            left_out += [f'{key}.{name}' for name in odd]
            kept[key] = {name: value[name] for name in value if name not in odd}
        elif _is_plain(value) and value is not None:
            kept[key] = value
        elif key in meta:
            left_out.append(key)
    return kept, left_out


def _is_plain(value: object) -> bool:
    """Tell whether ``weights_only`` reads a value, without any class of a library."""
    if type(value) in (dict, OrderedDict):
        return all(isinstance(key, (str, int)) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)
