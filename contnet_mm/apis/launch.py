"""Finds our configs and tools by name and runs them, the same from a wheel and from a checkout."""

from __future__ import annotations

import argparse
import ast
import runpy
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from contnet_mm.apis.config import CONFIG_SUFFIXES, LIBRARIES, find_config, read_config


def library_of(config: str) -> str:
    """Return the library that a config is for, by its ``default_scope``.

    Raises:
        ValueError: If it has none, or another one than ``LIBRARIES``, or if a base of it belongs
            to a library that MMEngine does not find.
    """
    # What the config imports is left to the library's script, which reads it again.
    return read_config(config, import_custom_modules=False).default_scope


def library_script(library: str, name: str) -> Path:
    """Return the path of a script that a library brings, for instance ``train.py``.

    Raises:
        ValueError: If the library or its script is missing.
    """
    spec = find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f'{library} is not installed, and the config needs it')
    package = Path(spec.submodule_search_locations[0])
    # A checkout of the library that is installed in place has no .mim.
    places = (package / '.mim' / 'tools' / name, package.parent / 'tools' / name)
    for place in places:
        if place.is_file():
            return place
    raise ValueError(f'{library} comes without {name}; looked for {places[0]} and {places[1]}')


def hand_over_plan(name: str, arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the library's script for a config and the arguments for it.

    Args:
        name: ``train.py`` or ``test.py``.
        arguments: Those of the library's script; its config may be the name of one of ours.

    Raises:
        ValueError: If there is no config among the arguments, or if it cannot be found or told
            which library it is for.
    """
    # The config is not always first: torch.distributed.launch puts --local-rank before it.
    places = [
        place
        for place, argument in enumerate(arguments)
        if not argument.startswith('-') and argument.endswith(CONFIG_SUFFIXES)
    ]
    if not places:
        raise ValueError(
            f'{" ".join(arguments) or "nothing"} was given, and no config in it: a name that ends '
            f'in {", ".join(CONFIG_SUFFIXES)}'
        )
    config = find_config(arguments[places[0]])
    script = library_script(library_of(config), name)
    return script, [*arguments[: places[0]], config, *arguments[places[0] + 1 :]]


def run_script(script: Path, arguments: Sequence[str]) -> None:
    """Run a script in this process as ``python script arguments`` does."""
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name='__main__')


def make_task_parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of a tool that hands over to a library's script."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f'The library is the default_scope of the config: {", ".join(LIBRARIES)}.',
    )
    parser.add_argument('config', help='a file, or the name of a config of contnet_mm')
    parser.add_argument(
        'arguments',
        nargs=argparse.REMAINDER,
        help="those of the library's script; --help after a config lists them",
    )
    return parser


def run_task(name: str, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Hand over to a library's script; what is wrong before that ends as an error of the parser.

    Args:
        name: ``train.py`` or ``test.py``.
        parser: What shows help and errors. It parses nothing, since the library's script may get
            options before the config.
        arguments: Those of the library's script.
    """
    if list(arguments) in (['-h'], ['--help']):  # mim asks for it before every training
        parser.print_help()
        return
    try:
        script, arguments = hand_over_plan(name, arguments)
    except ValueError as error:
        parser.error(str(error))
    run_script(script, arguments)


def list_tools(folder: Path) -> dict[str, str]:
    """Return the names of the tools in a folder, each with the first line of its docstring."""
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '').partition(
            '\n'
        )[0]
        for path in sorted(folder.glob('*.py'))
    }


def find_tool(name: str, folder: Path) -> Path:
    """Return the path of a tool.

    Raises:
        ValueError: If there is none of that name.
    """
    tools = list_tools(folder)
    if name not in tools:
        close = get_close_matches(name, tools)
        hint = f'did you mean {" or ".join(close)}?' if close else f'there are {", ".join(tools)}'
        raise ValueError(f'{name} is no tool of contnet_mm; {hint}')
    return folder / f'{name}.py'


def resolve_name(argument: str) -> str:
    """Return the path of the config that an argument names; any other argument as it is."""
    if argument.startswith('-') or not argument.endswith('.py'):
        return argument
    try:
        return find_config(argument)
    except ValueError:
        return argument
