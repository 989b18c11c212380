"""What a swap of the backbone hands from its parts to its writer."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmengine.config import Config


class SwapError(ValueError):
    """A config that cannot take ConTNet, with the reason."""


class RunError(SwapError):
    """A part that does not run on an image of some size; on a larger one it might."""


@dataclass(frozen=True)
class Change:
    """One value of a config that is not what it was.

    Args:
        path: Keys and places in lists that lead to it from the root of the config.
        why: The reason in one line, which the written config repeats as a comment.
    """

    path: tuple[str | int, ...]
    why: str


@dataclass
class Swap:
    """A config with ConTNet in it.

    Args:
        config: The whole config.
        changes: Where it differs from the one before.
        unknown: What a person has to judge, a line each.
    """

    config: Config
    changes: list[Change] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
