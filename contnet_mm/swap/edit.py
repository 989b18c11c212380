"""A config under change, with a record of what changed and why."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from contnet_mm.swap.changes import Change, Swap

Path = tuple[str | int, ...]


class Editor:
    """Changes a copy of a config, value by value.

    Args:
        config: The config before; it is not changed.
    """

    def __init__(self, config: Config) -> None:
        self.config = copy.deepcopy(config)
        self.root = self.config._cfg_dict  # a dict, which a Config is not
        self.changes: list[Change] = []
        self.unknown: list[str] = []

    def get(self, path: Path, default: Any = None) -> Any:
        """Return the value at a path, or the default where there is none."""
        value = self.root
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return default
        return value

    def set(self, path: Path, value: object, why: str) -> None:
        """Put a value at a path, unless it is there already."""
        holder = self.get(path[:-1])
        missing = object()
        try:
            old = holder[path[-1]]
        except (KeyError, IndexError):
            old = missing
        if old is not missing and type(old) is type(value) and old == value:
            return
        holder[path[-1]] = value
        self.changes.append(Change(path, why))

    def judge(self, *lines: str) -> None:
        """Note what a person has to judge."""
        self.unknown.extend(line for line in lines if line not in self.unknown)

    def finish(self) -> Swap:
        """Return the changed config with its record."""
        return Swap(self.config, self.changes, self.unknown)


def walk(value: object, path: Path = ()) -> Iterator[tuple[Path, dict]]:
    """Yield every dict inside a value, with its path; outer ones first."""
    if isinstance(value, dict):
        yield path, value
        for key in list(value):
            yield from walk(value[key], (*path, key))
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from walk(item, (*path, place))
