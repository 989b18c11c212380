"""The heads of a model, which have to predict as many classes as the data has."""

from __future__ import annotations

from contnet_mm.swap.edit import dotted, walk

# Heads that count something else than the classes of the data.
CLASSLESS = ('rpn_head', 'semantic_head')


def find_heads(config: dict) -> dict[str, int]:
    """Return the number of classes of each part of a config's model that states one, by its path.

    >>> find_heads(dict(model=dict(rpn_head=dict(num_classes=1), bbox_head=dict(num_classes=80))))
    {'model.bbox_head.num_classes': 80}
    """
    return {
        dotted((*path, 'num_classes')): part['num_classes']
        for key in ('model', 'data_preprocessor')
        for path, part in walk(config.get(key), (key,))
        if isinstance(part.get('num_classes'), int) and not any(n in CLASSLESS for n in path)
    }
