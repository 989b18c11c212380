"""How deep containers lie in others; whoever goes through them by recursion comes to an end."""

from __future__ import annotations

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
    heights: dict[int, int] = {}  # by identity, of what has been gone through
    opened: list[tuple[object, Iterator]] = [(content, _children(content))]
    inside = {id(content)}
    while opened:
        item, children = opened[-1]
        child = next((c for c in children if id(c) not in heights), None)
        if child is not None:
            if id(child) in inside or len(opened) > MAX_DEPTH:
                kind = type(child).__name__
                raise pickle.UnpicklingError(f'asks for a {kind} in itself, or too deep in others')
            inside.add(id(child))
            opened.append((child, _children(child)))
            continue
        opened.pop()
        inside.discard(id(item))
        heights[id(item)] = 1 + max((heights.get(id(c), 0) for c in _children(item)), default=0)
        if heights[id(item)] > MAX_DEPTH:
            raise pickle.UnpicklingError(f'asks for containers more than {MAX_DEPTH} deep')


def _children(item: object) -> Iterator[object]:
    """Yield the containers in a container."""
    values = [*item.values()] if isinstance(item, dict) else item
    values = values if isinstance(values, list | tuple) else []
    values = [*values, getattr(item, 'attributes', None)]
    return (value for value in values if isinstance(value, dict | list | tuple))
