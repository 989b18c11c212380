"""Class names as the installed libraries have them."""

from __future__ import annotations

import importlib

from contnet_mm.utils.errors import first_line


def library_classes(library: str, name: str) -> tuple[tuple[str, ...] | None, str]:
    """Reads the class names of a library's data set class.

    Args:
        library: 'mmdet', 'mmseg' or 'mmpretrain'.
        name: The class.

    Returns:
        The names and an empty text, or None and why they are not known.
    """
    try:
        module = importlib.import_module(f'{library}.datasets')
        return tuple(getattr(module, name).METAINFO['classes']), ''
    except Exception as error:  # a library that does not fit its neighbours fails in any way
        reason = first_line(error)
        return None, f'{library} does not import here ({reason})'
