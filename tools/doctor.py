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
    """Load contnet_mm/doctor by its path, whether contnet_mm is installed or not."""
    # In a checkout the package lies beside tools/, in a wheel beside the parent of .mim/tools/.
    files = (root / 'contnet_mm/doctor/__init__.py' for root in (TOOLS.parent, TOOLS.parents[2]))
    file = next(path for path in files if path.is_file())
    spec = importlib.util.spec_from_file_location('contnet_doctor', file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


doctor = load_doctor()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Exit status: 0 if all is well, 1 if something is to be fixed.'
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


def main() -> int:
    """Print the diagnoses and return the exit status."""
    args = make_parser().parse_args()
    print('Looking at the environment and trying each library takes up to a minute.', flush=True)
    diagnoses = doctor.examine(doctor.gather(TOOLS, args.need))
    wrapper = textwrap.TextWrapper(
        max(shutil.get_terminal_size((100, 24)).columns, 60),
        subsequent_indent=' ' * 9,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for status, about, text, command, _ in diagnoses:
        print(wrapper.fill(f'{status:8} {about:21} {text}'))
        if command:
            print(f'         $ {command}')  # in one line, to be copied
    counts = {status: sum(d.status == status for d in diagnoses) for status in doctor.BAD}
    if not any(counts.values()):
        print('All is well.')
        return 0
    said = ' and '.join(f'{n} {word}{"s" * (n > 1)}' for word, n in counts.items() if n)
    print(f'{said} to fix; begin at the top and run this again after each command.')
    return 1


if __name__ == '__main__':
    sys.exit(main())
