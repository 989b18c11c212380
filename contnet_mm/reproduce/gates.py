"""What has to hold before a row is trained, each with the command that puts it right."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mmengine.config import Config

from contnet_mm.apis.config import datasets_of, read_config, resources
from contnet_mm.checkpoint.download import download
from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.checkpoint.sources import ways_to_get
from contnet_mm.registry import MODELS
from contnet_mm.reproduce.launch import Cluster, make_test_command, name_last_checkpoint
from contnet_mm.reproduce.process import CommandError, run_command
from contnet_mm.reproduce.rows import TOLERANCES, Zoo, convert_metrics, find_zoo
from contnet_mm.reproduce.state import read_metrics, remove_metrics
from contnet_mm.utils.files import write_file

TOOL = [sys.executable, '-m', 'contnet_mm']
# Both hosts that metafiles name have the same files under the same paths.
HOSTS = {
    'mmassets.onedl.ai': 'download.openmmlab.com',
    'download.openmmlab.com': 'mmassets.onedl.ai',
}


class GateError(ValueError):
    """Something that has to be put right first; its message names the command that does it."""


@dataclass(frozen=True)
class Missing:
    """What a row lacks on this machine.

    Attributes:
        what: It.
        fix: The command that provides it, or words.
    """

    what: str
    fix: str


def list_missing(config: Config) -> list[Missing]:
    """Return which data and weights of a config are not there, by a look at their names alone."""
    found = []
    for root in dict.fromkeys(str(d.get('data_root', '')) for d in datasets_of(config, 'train')):
        if root and not Path(root).exists():
            demo = 'demo' in Path(root).parts
            fix = 'python -m contnet_mm make_demo_data' if demo else 'see docs/data.md'
            found.append(Missing(f'data in {root}', fix))
    for file in list_weights(config):
        if not Path(file).exists():
            found.append(Missing(f'weights {file}', _fix_weights(file)))
    return found


def _fix_weights(file: str) -> str:
    """Return how to get a file of weights: from the row of that name, or from their authors."""
    path = next((resources() / 'configs').glob(f'*/{Path(file).stem}.py'), None)
    if path is None:
        return ways_to_get(file)
    last = name_last_checkpoint(read_config(path, import_custom_modules=False))
    return (
        f'train the row that makes it: python -m contnet_mm reproduce {path.parent.name} --models '
        f'{path.stem} --run, then copy its last checkpoint: '
        f'cp work_dirs/reproduce/{path.stem}_seed0_*/train/{last} {file}'
    )


def list_weights(config: Config) -> list[str]:
    """Return the files of weights that a config starts from; addresses are left out."""
    inits = config.model.get('backbone', {}).get('init_cfg') or {}
    inits = inits if isinstance(inits, list) else [inits]
    files = [init.get('checkpoint') for init in inits] + [config.get('load_from')]
    return [file for file in files if file and '://' not in file]


def ask(log: Path, *words: str) -> None:
    """Let one of our commands look for what is wrong.

    Args:
        log: Gets what it prints.
        words: The command, such as ``doctor``, and its arguments.

    Raises:
        GateError: If it finds something.
    """
    log.unlink(missing_ok=True)
    try:
        run_command([*TOOL, *words], log)
    except CommandError as error:
        shown = ' '.join(['python', *TOOL[1:], *words])
        text = log.read_text(encoding='utf-8', errors='replace').strip()
        raise GateError(f'`{shown}` found something to put right:\n{text}') from error


def check_weights(config: Config) -> None:
    """Load the weights that a config starts from into its backbone.

    Raises:
        GateError: If they are missing, damaged, or of another network.
    """
    missing = [x for x in list_missing(config) if x.what.startswith('weights')]
    if missing:
        raise GateError(f'{missing[0].what} are missing: {missing[0].fix}')
    backbone = config.model.get('backbone', {})
    if backbone.get('type') != 'contnet_mm.ConTNet' or not backbone.get('init_cfg'):
        return
    try:
        MODELS.build(backbone).init_weights()
    except (ValueError, OSError) as error:
        raise GateError(f'the weights do not fit: {error}') from error


def check_baseline(name: str, folder: Path, cluster: Cluster) -> dict[str, float]:
    """Test the weights that the library's authors publish, which proves data and evaluator.

    Args:
        name: Of the library's config, such as ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.
        folder: Where the weights and the log of the test go.
        cluster: What tests it.

    Returns:
        The metrics.

    Raises:
        ValueError: If the library is missing, or names no weights.
        GateError: If the weights cannot be fetched or tested, or give other values than published.
    """
    zoo = find_zoo(name)
    weights = fetch_zoo(zoo, folder)
    stem = Path(name).stem
    config, work_dir, log = folder / f'{stem}.py', folder / stem, folder / f'{stem}.log'
    write_file(config, f'_base_ = {name!r}\n')
    library = name.partition('::')[0]
    command = make_test_command(str(config), library, cluster, weights, work_dir)
    remove_metrics(work_dir)
    try:
        run_command(command, log)
    except CommandError as error:
        raise GateError(f'the baseline cannot be tested: {error}') from error
    found = convert_metrics(read_metrics(work_dir))
    for metric, published in zoo.metrics.items():
        tolerance = 0.15 if metric.endswith('AP') else 0.05  # AP is printed in steps of 0.1
        if metric in TOLERANCES and abs(found[metric] - published) > tolerance:
            raise GateError(
                f'{weights} gives {metric} {found[metric]} here, but its authors published '
                f'{published}: data or evaluator differ from theirs. '
                '`--skip baseline` goes on regardless, and the report says so'
            )
    return found


def fetch_zoo(zoo: Zoo, folder: Path) -> Path:
    """Fetch the weights of a library's config from the first host that gives them.

    MMEngine will load them, which can run code that is in a file, so that they are read safely
    before they get their name.

    Raises:
        GateError: If no host does, or if what comes is no checkpoint or holds more than weights.
    """
    target = folder / Path(urlsplit(zoo.weights).path).name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    errors = []
    for url in list_addresses(zoo.weights):
        print(f'fetching {url}', flush=True)
        try:
            part = download(url, target)
            try:
                read_checkpoint(part)
            except ValueError:
                part.unlink()
                raise
            return part.replace(target)
        except (OSError, ValueError) as error:
            errors.append(str(error))
    raise GateError(
        f'the baseline needs {target}, which cannot be fetched: {"; ".join(errors)}. Fetch it by '
        'hand, or leave the baseline out: --skip baseline'
    )


def list_addresses(url: str) -> list[str]:
    """Return the addresses of a file of the libraries' zoos."""
    host = urlsplit(url).hostname or ''
    return [url] + ([url.replace(host, HOSTS[host], 1)] if host in HOSTS else [])
