"""Find our configs and tools by name and run them, the same from a wheel and from a checkout."""

from __future__ import annotations

import argparse
import ast
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from contnet_mm.apis.config import CONFIG_SUFFIXES, LIBRARIES, find_config, read_config, suggest
from contnet_mm.apis.mmcv_ops import refuse_missing_operations


def library_of(config: str) -> str:
    """Return the default scope of a config; what it imports is left to the library's script."""
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
    paths = (package / '.mim' / 'tools' / name, package.parent / 'tools' / name)
    for path in paths:
        if path.is_file():
            return path
    raise ValueError(f'{library} comes without {name}; looked for {paths[0]} and {paths[1]}')


def script_and_arguments(name: str, arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the library's script for a config and the arguments for it.

    Args:
        name: ``train.py`` or ``test.py``.
        arguments: Those of the library's script; its config may be the name of one of ours.

    Raises:
        ValueError: If there is no config among the arguments, if it cannot be found or told
            which library it is for, or if it needs operations that mmcv lacks here.
    """
    # The config is not always first: torch.distributed.launch puts --local-rank before it.
    for i, argument in enumerate(arguments):
        if not argument.startswith('-') and argument.endswith(CONFIG_SUFFIXES):
            config = find_config(argument)
            script = library_script(library_of(config), name)
            refuse_missing_operations(config)
            return script, [*arguments[:i], config, *arguments[i + 1 :]]
    raise ValueError(
        f'{" ".join(arguments) or "nothing"} was given, and no config in it: a name that ends in '
        + ', '.join(CONFIG_SUFFIXES)
    )


def run_script(script: Path, arguments: Sequence[str]) -> None:
    """Run a script in this process as ``python script arguments`` does."""
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name='__main__')


def make_task_parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of a tool that runs a library's script; it shows help and errors alone."""
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


def run_task(name: str, parser: argparse.ArgumentParser) -> None:
    """Run the script ``name`` of the library of a config with the arguments of the command line.

    They are not parsed, since the library's script may get options before the config.
    """
    arguments = sys.argv[1:]
    if arguments in (['-h'], ['--help']):  # mim asks for it before every training
        parser.print_help()
        return
    try:
        script, arguments = script_and_arguments(name, arguments)
    except ValueError as error:
        parser.error(str(error))
    run_script(script, arguments)


def list_tools(folder: Path) -> dict[str, str]:
    """Return the names of the tools in a folder, each with the first line of its docstring."""
    docs = {
        path.stem: ast.get_docstring(ast.parse(path.read_bytes())) for path in folder.glob('*.py')
    }
    return {name: (docs[name] or '').partition('\n')[0] for name in sorted(docs)}


def find_tool(name: str, folder: Path) -> Path:
    """Return the path of a tool.

    Raises:
        ValueError: If there is none of that name.
    """
    tools = list_tools(folder)
    if name not in tools:
        hint = suggest(name, tools, f'there are {", ".join(tools)}')
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
