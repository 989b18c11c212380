"""Export a detector, segmentor, classifier or backbone as ONNX, and compare it with torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.logging import MMLogger

from contnet_mm.export.run import export_and_report
from contnet_mm.utils.checks import parse_size


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Writes FILE and, with the same name, .json: classes, inputs, outputs. Exits with 1 '
        'where a comparison fails.',
    )
    parser.add_argument('config', help='path or name; its init_cfg is ignored')
    parser.add_argument('checkpoint', type=Path, help='weights of the whole model')
    parser.add_argument(
        '--size', type=parse_size, required=True, metavar='HxW', help='of the input in pixels'
    )
    parser.add_argument(
        '-o', '--out', type=Path, metavar='FILE', help='default: beside the checkpoint, .onnx'
    )
    parser.add_argument(
        '--backbone', action='store_true', help='the backbone alone, from weights of any kind'
    )
    parser.add_argument(
        '--check',
        nargs='*',
        type=Path,
        metavar='IMAGE',
        help="compare with torch on images (default: scikit-image's photographs)",
    )
    parser.add_argument(
        '--evaluate', action='store_true', help="compare the metrics of the config's test data"
    )
    parser.add_argument(
        '--time', action='store_true', help='time an image in torch and in what runs the file'
    )
    parser.add_argument(
        '--openvino', action='store_true', help='run the file in OpenVINO too, not only onnxruntime'
    )
    return parser


def main() -> None:
    """Export, compare, and print what was found."""
    parser = make_parser()
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    try:
        passed = export_and_report(
            args.config,
            args.checkpoint,
            args.size,
            out=args.out,
            backbone=args.backbone,
            images=args.check,
            evaluates=args.evaluate,
            times=args.time,
            runtimes=('onnxruntime', 'openvino') if args.openvino else ('onnxruntime',),
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error))
    sys.exit(not passed)


if __name__ == '__main__':
    main()
