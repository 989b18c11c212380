"""Whose operations mmcv has here, torchvision's for one that has none, and who needs more."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType
from typing import TYPE_CHECKING

from contnet_mm.apis.config import read_config, resources

if TYPE_CHECKING:
    from mmengine.config import Config

COMPILED, TORCHVISION = 'mmcv', 'torchvision'
HOW_TO_COMPILE = (
    '`make setup OPS=mmcv` compiles them in a checkout; `python -m contnet_mm doctor` names the '
    'command for any other environment'
)


def find_ops() -> str | None:
    """Return whose operations mmcv has: ``'mmcv'`` (compiled), ``'torchvision'`` or None.

    Raises:
        ValueError: If mmcv is not installed.
    """
    if find_spec('mmcv') is None:
        raise ValueError(
            'mmcv is not installed; install it first, without its operations if need be'
        )
    spec = find_spec('mmcv._ext')
    if spec is None:
        return None
    return TORCHVISION if str(spec.origin).endswith('.py') else COMPILED


def install_ops() -> str:
    """Install torchvision's operations into mmcv, unless it has some.

    Returns:
        A line about what was done.

    Raises:
        ValueError: If mmcv is missing or has compiled operations, or if pip fails.
    """
    found = find_ops()
    if found == COMPILED:
        raise ValueError(
            f'mmcv has compiled operations, {find_spec("mmcv._ext").origin}: those are better. If '
            'they do not load, they were built for another torch: reinstall mmcv'
        )
    if found == TORCHVISION:
        return "mmcv has torchvision's operations already"
    folder = resources() / 'tools' / 'transitional' / 'mmcv_ops'
    command = [sys.executable, '-m', 'pip', 'install', '--no-deps', str(folder)]
    if subprocess.run(command).returncode:
        raise ValueError(f'pip failed, see above: {" ".join(command)}')
    return "mmcv has torchvision's operations now"


def refuse_missing_operations(name: str) -> None:
    """Check, where mmcv has torchvision's operations, that a config needs no others.

    Args:
        name: The config, as :func:`contnet_mm.apis.config.read_config` takes it.

    Raises:
        ValueError: If it calls others; the message names them and the way to them.
    """
    if find_spec('mmcv') is None or find_ops() != TORCHVISION:
        return
    missing = missing_operations(read_config(name))
    if missing:
        raise ValueError(
            f'{name} calls {", ".join(missing)} of mmcv, which torchvision does not compute in '
            f'their place. {HOW_TO_COMPILE}'
        )


def missing_operations(config: Config) -> list[str]:
    """Return the operations that the model of a config may call and that mmcv lacks here.

    Nothing is built: they are read from the code of the classes and functions that ``type`` names
    in the model, and of what these call in ``mmcv.ops``. Left out are unusual options of an
    operation that is there, such as RoIAlign's ``pool_mode='max'``.
    """
    if not config.get('model'):
        return []
    ops = import_module('mmcv.ops')
    library = import_module(f'{config.default_scope}.registry')
    called: set[str] = set()
    seen: set[object] = set()
    for kind in set(_types_in(config.model)):
        found = [kind]
        if isinstance(kind, str):  # RoI layers and kinds of NMS are looked up in mmcv.ops
            found = [registry.get(kind) for registry in (library.MODELS, library.TASK_UTILS)]
            found.append(getattr(ops, kind, None))
        for thing in found:
            called.update(_called_by(thing, seen))
    return sorted(called - vars(import_module('mmcv._ext')).keys())


def _types_in(part: object) -> Iterator[str | type]:
    """Yield each ``type`` in a part of a config."""
    if isinstance(part, dict):
        if isinstance(part.get('type'), (str, type)):
            yield part['type']
        part = [*part.values()]
    if isinstance(part, (list, tuple)):
        for value in part:
            yield from _types_in(value)


def _called_by(thing: object, seen: set[object]) -> Iterator[str]:
    """Yield the functions of mmcv's extension that a class, with its bases, or function calls."""
    thing = getattr(thing, '__self__', thing)  # apply of an autograd function: that function
    parts = thing.__mro__ if isinstance(thing, type) else [thing]
    for part in parts:
        if not isinstance(part, (type, FunctionType)) or part in seen:
            continue
        seen.add(part)
        names = getattr(sys.modules.get(part.__module__), '__dict__', {})
        for function, attribute in _calls_in(part):
            used = names.get(function)
            if function == 'ext_module':
                yield attribute
            elif _is_of_mmcv_ops(used):
                yield from _called_by(used, seen)


def _is_of_mmcv_ops(thing: object) -> bool:
    owner = getattr(thing, '__self__', thing)
    return str(getattr(owner, '__module__', '')).startswith('mmcv.ops.')


@cache
def _calls_in(part: type | FunctionType) -> set[tuple[str, str]]:
    """Return the names that a piece of code calls: ``f()`` as (f, ''), ``f.x()`` as (f, x)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
    except (OSError, TypeError, SyntaxError):  # built in, or made at run time
        return set()
    calls = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function, attribute = node.func, ''
            if isinstance(function, ast.Attribute):
                function, attribute = function.value, function.attr
            if isinstance(function, ast.Name):
                calls.add((function.id, attribute))
    return calls
