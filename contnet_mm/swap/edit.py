"""A config in which ConTNet takes the place of a backbone, with a record of what changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config

KeyPath = tuple[str | int, ...]  # keys and indices from the root of a config to a value


class SwapError(ValueError):
    """A config that cannot take ConTNet, with the reason."""


@dataclass
class Swap:
    """A config with ConTNet in it."""

    config: Config  # the whole config, changed in place
    changes: dict[KeyPath, str] = field(default_factory=dict)  # each with its reason
    warnings: list[str] = field(default_factory=list)  # what a person has to judge

    def get(self, path: KeyPath, default: Any = None) -> Any:
        """Return the value at a path, or the default where there is none."""
        return find_value(self.config._cfg_dict, path, default)

    def set(self, path: KeyPath, value: object, why: str) -> None:
        """Set the value at a path, unless it is there already."""
        old = self.get(path, default=Ellipsis)
        if type(old) is not type(value) or old != value:
            self.get(path[:-1])[path[-1]] = value
            self.changes[path] = why

    def add_warning(self, line: str) -> None:
        """Note what a person has to judge, once."""
        if line not in self.warnings:
            self.warnings.append(line)


def find_value(root: object, path: KeyPath, default: Any = None) -> Any:
    """Return the value at a path, or the default where there is none."""
    for key in path:
        try:
            root = root[key]
        except (KeyError, IndexError, TypeError):
            return default
    return root


def walk(value: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, dict]]:
    """Yield every dict inside a value, with its path; outer ones first."""
    if isinstance(value, dict):
        yield path, value
        for key in list(value):
            yield from walk(value[key], (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from walk(item, (*path, index))


def dotted(path: KeyPath) -> str:
    """Return a path as people write it: ``model.neck.0.in_channels``."""
    return '.'.join(map(str, path))
