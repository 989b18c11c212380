"""Reading a config of one of the three libraries, by path or by name."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from contnet_mm.launch import LIBRARIES, find_config


def read_config(name: str | Path) -> Config:
    """Read a config by its path, by the name of one of ours, or as ``mmdet::fcos/<file>.py``.

    Raises:
        ValueError: If there is no such config, or if its default scope is none of the libraries.
    """
    if '::' in str(name):
        try:
            config = Config.fromstring(f'_base_ = {str(name)!r}', '.py')
        except Exception as error:  # each way to miss it has an error of its own in MMEngine
            raise ValueError(f'{name} is no config of an installed library: {error}') from error
    else:
        config = Config.fromfile(find_config(str(name)))
    if config.get('default_scope') not in LIBRARIES:
        raise ValueError(
            f'default_scope of {name} is {config.get("default_scope")!r}; '
            f'it must be one of {", ".join(LIBRARIES)}'
        )
    return config
