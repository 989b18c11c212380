"""Models by name: those of our configs, those of any library's, and ours in MMPretrain's list."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

from contnet_mm.apis.config import datasets_of, read_config, resources
from contnet_mm.checkpoint.load import find_tensors
from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.engine.feature_widths import check_feature_widths, check_loaded_widths
from contnet_mm.utils.errors import NUM_SHOWN


def list_models(pattern: str = '*') -> list[str]:
    """Return the names of our configs, each of which :func:`get_model` takes.

    Args:
        pattern: What a name must look like, with ``*`` and ``?`` as in a shell.

    >>> list_models('contnet-ti*in1k')
    ['contnet-ti_8xb32_in1k', 'contnet-ti_8xb64-strong_in1k']
    """
    configs = (resources() / 'configs').glob('[!_]*/*.py')  # all but _base_
    return sorted(fnmatch.filter((path.stem for path in configs), pattern))


def get_model(name: str | Path | Config, checkpoint: str | Path | None = None) -> nn.Module:
    """Build the model of a config, in eval mode on the CPU.

    Args:
        name: One of :func:`list_models`, the path of a config, a config of another library such as
            ``'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'``, or a config that was read.
        checkpoint: Weights of the whole model; random ones by default, whatever the config's
            ``init_cfg`` says.

    Returns:
        The detector, segmentor or classifier. What is known of its classes is in ``dataset_meta``.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If there is no such config, the neck or a head does not fit the backbone, or the
            checkpoint is refused or does not cover the model.
    """
    config = name if isinstance(name, Config) else read_config(name)
    content = None if checkpoint is None else read_checkpoint(checkpoint)
    cfg = copy.deepcopy(config.model)  # heads write into theirs
    if config.get('data_preprocessor'):  # MMPretrain has it beside the model
        cfg.setdefault('data_preprocessor', config.data_preprocessor)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(cfg)
    check_feature_widths(model)
    if content is not None:
        load_weights(model, content, checkpoint)
    model.dataset_meta = find_meta(config, content)
    return model.eval()


def register_mmpretrain() -> None:
    """Make our ImageNet configs known to MMPretrain, by name; calling it again changes nothing.

    ``mmpretrain.list_models``, ``get_model``, ``inference_model`` and its inferencers then take
    them. Names that MMPretrain has itself, such as those of ResNets, stay its own.

    Raises:
        ModuleNotFoundError: If MMPretrain is not installed.
    """
    import mmpretrain
    from mmpretrain.apis import ModelHub

    mmpretrain.list_models()  # its own names come first: it would refuse them after ours
    folder = resources()
    text = (folder / 'configs' / 'contnet' / 'metafile.yml').read_text(encoding='utf-8')
    content = yaml.safe_load(text)
    models = [model for model in content['Models'] if not ModelHub.has(model['Name'].lower())]
    if not models:
        return
    # The hub reads files alone, and refuses one of which it knows a single name.
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / 'metafile.yml'
        path.write_text(yaml.safe_dump({**content, 'Models': models}), encoding='utf-8')
        ModelHub.register_model_index(path, config_prefix=folder)


def find_meta(config: Config, content: object = None) -> dict:
    """Return class names and colours: of a checkpoint, or else of the config's test data.

    Args:
        config: Of one of the three libraries.
        content: Of the checkpoint, as it was read.
    """
    datasets = datasets_of(config, 'test')
    of_data = _dataset_meta(config, datasets[0]) if datasets else {}
    return {**of_data, **_file_meta(content)}


def _dataset_meta(config: Config, dataset: Mapping) -> dict:
    """Return class names and colours of the config's test data, if it tells."""
    kind = dataset['type']
    if not isinstance(kind, type):
        with DATASETS.switch_scope_and_registry(config.default_scope) as registry:
            kind = registry.get(kind)
    meta = dict(getattr(kind, 'METAINFO', {}))
    given = dataset.get('metainfo')
    meta.update(given if isinstance(given, Mapping) else {})
    if dataset.get('classes'):  # MMPretrain's CustomDataset
        meta['classes'] = dataset['classes']
    return meta


def _file_meta(content: object) -> dict:
    """Return what a checkpoint says of its data set."""
    meta = content.get('meta') if isinstance(content, Mapping) else None
    if isinstance(meta, Mapping):
        meta = meta.get('dataset_meta') or {'classes': meta.get('CLASSES')}  # of OpenMMLab 1
    if not isinstance(meta, Mapping):
        return {}
    return {str(key).lower(): value for key, value in meta.items() if value is not None}


def load_weights(model: nn.Module, content: object, checkpoint: str | Path) -> None:
    """Load weights of a whole model, or none.

    Args:
        model: A detector, segmentor or classifier.
        content: Of the checkpoint, as it was read.
        checkpoint: Its name, for errors.

    Raises:
        ValueError: If it holds no weights or does not cover the model.
    """
    state_dict = find_tensors(content, str(checkpoint))
    if not state_dict:
        raise ValueError(f'{checkpoint} holds no state dict; give a checkpoint of the whole model')
    try:
        check_loaded_widths(model, state_dict)
        missing, unexpected = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1 : NUM_SHOWN + 1]]
        raise ValueError(f'{checkpoint} does not fit the config: {" ".join(reasons)}') from error
    except ValueError as error:  # other options
        raise ValueError(f'{checkpoint} does not fit the config: {error}') from error
    surplus = (
        f'{len(unexpected)} of its {len(state_dict)} tensors are not in the model, the first are '
        + ', '.join(unexpected[:NUM_SHOWN])
    )
    if missing:
        raise ValueError(
            f'{checkpoint} does not fit the config: it lacks {len(missing)} of '
            f'{len(model.state_dict())} tensors, the first are {", ".join(missing[:NUM_SHOWN])}'
            + (f'; {surplus}' if unexpected else '')
        )
    if unexpected:
        warnings.warn(f'{checkpoint} may belong to another config: {surplus}', stacklevel=3)
