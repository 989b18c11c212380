"""Make a small file to share from a training's checkpoint: weights, and a hash in the name."""

from __future__ import annotations

import argparse
from pathlib import Path

from contnet_mm.apis.publish import publish_checkpoint


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', type=Path, help='checkpoint of a training, such as epoch_12.pth')
    parser.add_argument(
        'prefix',
        type=Path,
        help='folder and name of the new file without its end (_{date}-{hash}.pth), or a config: '
        'then the file gets its name and lies beside the source',
    )
    parser.add_argument('--safetensors', action='store_true', help='write .safetensors, not .pth')
    return parser


def main() -> None:
    """Publish, and print what is in the file."""
    parser = make_parser()
    args = parser.parse_args()
    suffix = '.safetensors' if args.safetensors else '.pth'
    try:
        path, lines = publish_checkpoint(args.source, args.prefix, suffix)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error))
    print('\n'.join([*lines, f'wrote {path}']))


if __name__ == '__main__':
    main()
