"""How deep containers lie in others; whoever goes through them by recursion comes to an end."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator

MAX_DEPTH = 100


def check_depth(content: object) -> None:
    """Refuse containers that are in themselves, or too deep for whoever looks through them.

    Args:
        content: Of dicts, lists and tuples; the ``attributes`` of a dict count as in it.

    Raises:
        UnpicklingError: If there are such.
    """
    heights: dict[int, float] = {}  # by identity: what several share is gone through once

    def measure(item: object, depth: int) -> float:
        if depth > MAX_DEPTH:
            return math.inf
        if id(item) not in heights:
            heights[id(item)] = math.inf  # while inside of it: what is in itself has no end
            inner = (measure(child, depth + 1) for child in _children(item))
            heights[id(item)] = 1 + max(inner, default=0)
        return heights[id(item)]

    if measure(content, 1) > MAX_DEPTH:
        raise pickle.UnpicklingError(
            f'asks for containers in themselves, or more than {MAX_DEPTH} deep'
        )


def _children(item: object) -> Iterator[object]:
    """Yield the containers in a container."""
    values = [*item.values()] if isinstance(item, dict) else item
    values = values if isinstance(values, list | tuple) else []
    values = [*values, getattr(item, 'attributes', None)]
    return (value for value in values if isinstance(value, dict | list | tuple))
