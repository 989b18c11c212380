"""Puts torchvision's operations into an mmcv that has none of its own."""

from __future__ import annotations

import argparse

from contnet_mm.apis.mmcv_ops import install_ops


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    return argparse.ArgumentParser(
        description=__doc__,
        epilog='What RetinaNet, FCOS, Faster R-CNN and Mask R-CNN need runs then, on CPU and GPU; '
        'other operations raise when they are called. Compiled operations are left alone.',
    )


def main() -> None:
    """Install, or say why not."""
    parser = make_parser()
    parser.parse_args()
    try:
        print(install_ops())
    except ValueError as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
