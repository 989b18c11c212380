"""Train a config with train.py of the library that it is for."""

from __future__ import annotations

import argparse

from contnet_mm.apis.launch import make_task_parser, run_task


def make_parser() -> argparse.ArgumentParser:
    """Return the parser that shows help and errors."""
    return make_task_parser(__doc__)


if __name__ == '__main__':
    run_task('train.py', make_parser())
