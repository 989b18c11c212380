"""Export a model and report what a comparison with torch shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config

from contnet_mm.apis.config import datasets_of, read_config
from contnet_mm.benchmark.machine import describe_machine
from contnet_mm.datasets.photographs import find_natural
from contnet_mm.export.build import build_network
from contnet_mm.export.check import compare, compute_expected, report
from contnet_mm.export.evaluate import evaluate_file, evaluate_torch
from contnet_mm.export.images import make_reader
from contnet_mm.export.network import ExportedNetwork, Size
from contnet_mm.export.onnx_file import write_onnx
from contnet_mm.export.runtimes import Session
from contnet_mm.export.timing import time_all
from contnet_mm.utils.markdown import make_table

# Of a metric between 0 and 1; MMSegmentation and MMPretrain give percent.
METRIC_TOLERANCE = 0.002
NEEDED = ('onnx', 'onnxscript', 'onnxruntime')
FACTS = ('CPU', 'CPU cores', 'threads')
say = partial(print, flush=True)


def export_and_report(
    config: str | Path,
    checkpoint: str | Path,
    size: Size,
    out: Path | None = None,
    backbone: bool = False,
    images: Sequence[Path] | None = None,
    evaluates: bool = False,
    times: bool = False,
    runtimes: Sequence[str] = ('onnxruntime',),
) -> bool:
    """Export a model, print what was done, and tell whether all comparisons passed.

    Args:
        config: Path or name of a config.
        checkpoint: Its weights.
        size: Of the input.
        out: The ONNX file; by default beside the checkpoint.
        backbone: Whether to export the backbone alone.
        images: To compare on; none: scikit-image's photographs; None: compare nothing.
        evaluates: Whether to compare the metrics of the config's test data.
        times: Whether to time an image.
        runtimes: What runs the file.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ModuleNotFoundError: If something is not installed that is needed.
        ValueError: If the config, the checkpoint or an image cannot be used, or the model cannot
            be exported.
    """
    _check_installed(runtimes)
    if out is None:
        name = Path(checkpoint)
        out = name.with_name(f'{name.stem}_backbone') if backbone else name
        out = out.with_suffix('.onnx')
    if out.suffix != '.onnx':
        raise ValueError(f'the file must end in .onnx, got {out}')
    if evaluates and backbone:
        raise ValueError('a backbone alone has no metrics to evaluate')
    cfg = read_config(config)
    network = build_network(cfg, checkpoint, size, backbone)
    pixels = []
    if images is not None:
        pixels = [*map(make_reader(network, cfg), images or find_natural())]
    about = dict(config=Path(str(config)).name, checkpoint=Path(checkpoint).name)
    if network.task == 'classification':
        about['pipeline'] = datasets_of(cfg, 'test')[0]['pipeline']
    write_onnx(network, out, about)
    say(f'wrote {out} ({out.stat().st_size / 1e6:.1f} MB) and {out.with_suffix(".json")}')
    passed = [_compare_images(network, out, pixels, runtimes)] if pixels else []
    if evaluates:
        passed.append(_compare_metrics(network, out, cfg, runtimes))
    if times:
        facts = describe_machine('cpu')
        say('\n' + ', '.join(f'{name}: {facts[name]}' for name in FACTS if name in facts))
        say(time_all(network, out, runtimes))
    if not all(passed):
        say('The file differs from torch by more than rounding does.')
    return all(passed)


def _compare_images(
    network: ExportedNetwork, out: Path, images: Sequence[np.ndarray], runtimes: Sequence[str]
) -> bool:
    """Print how far the file is from torch on images, and tell whether that is rounding."""
    expected = [compute_expected(network, image) for image in images]
    comparisons = [compare(network, out, expected, runtime) for runtime in runtimes]
    say(f'\ntorch {torch.__version__} and the file on {len(images)} images, largest difference')
    say(report(comparisons, network))
    return all(comparison.passed for comparison in comparisons)


def _compare_metrics(
    network: ExportedNetwork, out: Path, config: Config, runtimes: Sequence[str]
) -> bool:
    """Print the metrics of torch and of the file, and tell whether they are close."""
    found = {f'torch {torch.__version__}': evaluate_torch(network, config)}
    for runtime in runtimes:
        session = Session(out, runtime)
        found[f'{runtime} {session.version}'] = evaluate_file(network, config, session)
    reference, *others = found.values()
    rows = [[name, *(f'{metrics[name]:.4f}' for metrics in found.values())] for name in reference]
    say('\nmetrics of the test data')
    say(make_table(('metric', *found), rows, numbers=len(found)))
    limit = METRIC_TOLERANCE * (1 if config.default_scope == 'mmdet' else 100)
    return all(
        abs(metrics[name] - reference[name]) <= limit for metrics in others for name in reference
    )


def _check_installed(runtimes: Sequence[str]) -> None:
    missing = [name for name in dict.fromkeys([*NEEDED, *runtimes]) if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f'{", ".join(missing)} must be installed: pip install "contnet_mm[export]"'
            + (', pip install "contnet_mm[openvino]"' if 'openvino' in missing else '')
        )
