"""Say what is wrong with this environment, and the command that fixes it."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import textwrap
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).resolve().parent


def load_doctor() -> ModuleType:
    """Load contnet_mm/doctor by its path, since importing contnet_mm needs torch."""
    # In a checkout the package lies beside tools/, in a wheel beside the parent of .mim/tools/.
    files = (root / 'contnet_mm/doctor/__init__.py' for root in (TOOLS.parent, TOOLS.parents[2]))
    file = next(path for path in files if path.is_file())
    spec = importlib.util.spec_from_file_location('contnet_doctor', file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


doctor = load_doctor()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Exit status: 0 if all is well, 1 if something is to fix.'
    )
    parser.add_argument(
        '--need',
        nargs='+',
        default=[],
        choices=doctor.LIBRARIES,
        metavar='LIBRARY',
        help=f'count it as a problem if one is missing ({", ".join(doctor.LIBRARIES)})',
    )
    return parser


def format_diagnosis(diagnosis, width: int) -> str:
    """Return the lines of one diagnosis; the command stays in one, to be copied."""
    head = f'{diagnosis.status:8} {diagnosis.about:21} '
    lines = textwrap.wrap(
        diagnosis.text,
        max(width, 60),
        initial_indent=head,
        subsequent_indent=' ' * 9,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return '\n'.join([*lines, *([f'         $ {diagnosis.command}'] if diagnosis.command else [])])


def main() -> int:
    """Print the diagnoses and return the exit status."""
    args = make_parser().parse_args()
    print('Looking at the environment and trying each library takes up to a minute.', flush=True)
    diagnoses = doctor.examine(doctor.gather(TOOLS, args.need))
    width = shutil.get_terminal_size((100, 24)).columns
    for diagnosis in diagnoses:
        print(format_diagnosis(diagnosis, width))
    counts = {status: sum(f.status == status for f in diagnoses) for status in doctor.BAD}
    if not any(counts.values()):
        print('All is well.')
        return 0
    said = ' and '.join(f'{n} {word}{"s" * (n > 1)}' for word, n in counts.items() if n)
    print(f'{said} to fix; begin at the top and run this again after each command.')
    return 1


if __name__ == '__main__':
    sys.exit(main())
