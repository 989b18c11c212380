"""Find and read a config of one of the three libraries, by path or by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

# MMEngine is imported where it is called: `python -m contnet_mm doctor` runs without it.
if TYPE_CHECKING:
    from mmengine.config import Config

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')  # what MMEngine reads


def resources() -> Path:
    """Return the folder of ``configs`` and ``tools``: a wheel has ``.mim``, else the checkout.

    Raises:
        ValueError: If there is neither.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / '.mim', package.parent):
        if (folder / 'configs').is_dir() and (folder / 'tools').is_dir():
            return folder
    raise ValueError(
        f'{package} comes without configs and tools; install contnet_mm from its wheel or checkout'
    )


def find_config(name: str, folder: Path | None = None) -> str:
    """Return the path of a config.

    Args:
        name: A file, which is returned as it is; or the name of a config of ours, with or without
            ``.py``, and with as many of its folders as it takes to tell it from others: ``x``,
            ``x.py``, ``demo/x.py``.
        folder: Where our configs are. Default: where they were installed.

    Raises:
        ValueError: If it is no file and names none, or more than one, of our configs.
    """
    if Path(name).is_file():
        return name
    folder = folder or resources() / 'configs'
    ours = {path.relative_to(folder.parent): path for path in sorted(folder.rglob('*.py'))}
    wanted = Path(name if name.endswith('.py') else f'{name}.py').parts
    found = [path for path in ours if path.parts[-len(wanted) :] == wanted]
    if len(found) == 1:
        return str(ours[found[0]])
    if found:
        raise ValueError(
            f'{name} is no file, and the name of {len(found)} configs; write one of them: '
            + ', '.join(path.as_posix() for path in found)
        )
    hint = suggest(wanted[-1], (path.name for path in ours), f'see {folder}')
    raise ValueError(f'{name} is neither a file nor the name of a config in contnet_mm; {hint}')


def suggest(name: str, known: Iterable[str], otherwise: str) -> str:
    """Ask whether a known name was meant that is close to an unknown one, if there is any."""
    close = get_close_matches(name, [*known])
    return f'did you mean {" or ".join(close)}?' if close else otherwise


def read_config(name: str | Path, import_custom_modules: bool = True) -> Config:
    """Read a config by its path, by the name of one of ours, or as ``mmdet::fcos/<file>.py``.

    Args:
        name: The path or name.
        import_custom_modules: Whether to import what its ``custom_imports`` name.

    Raises:
        ValueError: If there is no such config, if its default scope is none of the libraries, or
            if it or a base of it belongs to a library that MMEngine does not find.
    """
    try:
        if '::' in str(name):
            config = _read_of_library(str(name), import_custom_modules)
        else:
            config = _read_file(find_config(str(name)), import_custom_modules)
    except ModuleNotFoundError as error:
        raise ValueError(
            f'{name} needs a library that is not found: {error}. Beside the maintained fork that '
            'would overwrite its files: `python -m contnet_mm doctor` names the command'
        ) from error
    if config.get('default_scope') not in LIBRARIES:
        raise ValueError(
            f'default_scope of {name} is {config.get("default_scope")!r}; '
            f'it must be one of {", ".join(LIBRARIES)}'
        )
    return config


def _read_file(path: str | Path, import_custom_modules: bool) -> Config:
    from mmengine.config import Config

    return Config.fromfile(path, import_custom_modules=import_custom_modules)


def _read_of_library(name: str, import_custom_modules: bool) -> Config:
    with TemporaryDirectory() as folder:
        path = Path(folder) / 'config.py'
        path.write_text(f'_base_ = {name!r}\n', encoding='utf-8')
        try:
            return _read_file(path, import_custom_modules)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # each way to miss it has an error of its own in MMEngine
            raise ValueError(f'{name} is no config of an installed library: {error}') from error


def datasets_of(config: Config, split: str) -> list[dict]:
    """Return the data sets of a split, ``'train'``, ``'val'`` or ``'test'``, as a config has them.

    Those are the ones inside RepeatDataset, ConcatDataset and other wrappers; none where the config
    has no such data loader.
    """

    def unwrap(dataset: dict) -> Iterator[dict]:
        inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
        if not inner:
            yield dataset
        for other in inner:
            yield from unwrap(other)

    dataset = (config.get(f'{split}_dataloader') or {}).get('dataset')
    return [*unwrap(dataset)] if dataset else []
