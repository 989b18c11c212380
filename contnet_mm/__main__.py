"""Run a tool of contnet_mm, the same from a wheel and from a checkout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from contnet_mm.apis.config import resources
from contnet_mm.apis.launch import find_tool, list_tools, resolve_name, run_script


def make_parser(folder: Path) -> argparse.ArgumentParser:
    """Return the parser of the command line; its help lists the tools of the folder."""
    tools = ''.join(f'\n  {name:20}  {text}' for name, text in list_tools(folder).items())
    parser = argparse.ArgumentParser(
        prog='python -m contnet_mm',
        description=__doc__,
        epilog=f'tools:{tools}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('tool', help='one of the list below')
    parser.add_argument(
        'arguments',
        nargs=argparse.REMAINDER,
        help='those of the tool, --help lists them; a config may be given by its name alone',
    )
    return parser


def main() -> None:
    """Run the tool, or list the tools where none is named."""
    folder = resources() / 'tools'
    parser = make_parser(folder)
    args = parser.parse_args(sys.argv[1:] or ['--help'])
    try:
        tool = find_tool(args.tool, folder)
    except ValueError as error:
        parser.error(str(error))
    run_script(tool, [resolve_name(argument) for argument in args.arguments])


if __name__ == '__main__':
    main()
