"""Trains a config with train.py of the library that it is for."""

from __future__ import annotations

import argparse
import sys

from contnet_mm.apis.launch import make_task_parser, run_task


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser that shows help and errors."""
    return make_task_parser(__doc__)


def main() -> None:
    """Hands over to the library's script."""
    run_task('train.py', make_parser(), sys.argv[1:])


if __name__ == '__main__':
    main()
