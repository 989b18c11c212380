"""Compare what an ONNX file computes with what the library computes in torch, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contnet_mm.export.network import Arrays, ExportedNetwork
from contnet_mm.export.runtimes import Session
from contnet_mm.utils.markdown import make_table

TOLERANCE = 1e-4


@dataclass
class Comparison:
    """How far a file differs from torch, over all images.

    Attributes:
        runtime: What ran the file, with its version.
        differences: By the name of an output: the largest difference over the largest value; for
            boxes over the longer side of the input.
        alike: Detections, or pixels of a segmentation, that are the same.
        ties: Those where rounding decides, so that either is right.
        others: Those that differ.
    """

    runtime: str
    differences: dict[str, float] = field(default_factory=dict)
    alike: int = 0
    ties: int = 0
    others: int = 0

    @property
    def passed(self) -> bool:
        """Whether nothing differs by more than rounding does."""
        return not self.others and all(d <= TOLERANCE for d in self.differences.values())

    def add(self, name: str, difference: float) -> None:
        """Note a difference; one that is not a number counts as infinite."""
        difference = float(np.nan_to_num(difference, nan=np.inf))
        self.differences[name] = max(self.differences.get(name, 0.0), difference)


@dataclass(frozen=True)
class Expected:
    """What torch computes from an image, beside the image itself.

    Attributes:
        pixels: RGB, uint8 [3, h, w].
        maps: By name, as :meth:`ExportedNetwork.compute_maps` returns them.
        predictions: By name, by the library's own way to predict.
    """

    pixels: np.ndarray
    maps: Arrays
    predictions: Arrays


def compute_expected(network: ExportedNetwork, pixels: np.ndarray) -> Expected:
    """Compute in torch what a file has to give for an image, RGB, uint8 [3, h, w]."""
    with torch.inference_mode():
        x = network.library_input(pixels)
        maps = network.compute_maps(x)
        named = dict(zip(network.name_maps(maps), maps, strict=True))
        predictions = network.predict(x, tuple(pixels.shape[1:]))
    return Expected(pixels, _to_arrays(named), _to_arrays(predictions))


def _to_arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def compare(
    network: ExportedNetwork, path: Path, images: Sequence[Expected], runtime: str = 'onnxruntime'
) -> Comparison:
    """Run a file on images and compare all that it computes.

    Args:
        network: What the file was made of.
        path: The file.
        images: What to run on, and what is expected.
        runtime: What to run it with.
    """
    session = Session(path, runtime, maps=[*images[0].maps])
    comparison = Comparison(f'{runtime} {session.version}')
    for expected in images:
        found = session(expected.pixels)
        for name, value in expected.maps.items():
            comparison.add(name, relative_difference(found[name], value))
        if network.task == 'detection':
            full = network.test_cfg.max_per_img, network.test_cfg.get('score_thr', 0)
            _compare_detections(comparison, expected.predictions, found, network.size, *full)
        elif network.task == 'segmentation':
            _compare_labels(comparison, expected, found)
        else:
            for name, value in expected.predictions.items():
                comparison.add(name, relative_difference(found[name], value))
    return comparison


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference over the largest value."""
    if found.shape != expected.shape:
        return np.inf
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))


def _compare_labels(comparison: Comparison, expected: Expected, found: Arrays) -> None:
    """Count equal pixels; where two classes are as good as equal, either is right."""
    logits = expected.maps['logits']
    alike = found['labels'] == expected.predictions['labels']
    is_tie = np.zeros_like(alike)
    if logits.shape[1] > 1:
        second, first = np.partition(logits, -2, axis=1)[:, -2:].swapaxes(0, 1)
        is_tie = ~alike & (first - second <= TOLERANCE * np.abs(logits).max())
    comparison.alike += int(alike.sum())
    comparison.ties += int(is_tie.sum())
    comparison.others += int((~alike & ~is_tie).sum())


def _compare_detections(
    comparison: Comparison,
    expected: Arrays,
    found: Arrays,
    size: tuple[int, int],
    max_per_img: int,
    score_thr: float,
) -> None:
    """Find each detection of either list in the other one.

    Without a partner, a detection counts as a tie where rounding decides whether it is on the list
    at all: at the end of a full list, or at the threshold.
    """
    boxes_a, scores_a, labels_a = _split(expected)
    boxes_b, scores_b, labels_b = _split(found)
    distance = np.abs(boxes_a[:, None] - boxes_b).max(-1, initial=0) / max(size)
    gap = np.abs(scores_a[:, None] - scores_b)
    alike = (labels_a[:, None] == labels_b) & (distance <= TOLERANCE) & (gap <= TOLERANCE)
    partner: dict[int, int] = {}
    for i in range(len(scores_a)):
        free = [j for j in np.flatnonzero(alike[i]) if j not in partner.values()]
        if free:
            j = partner[i] = min(free, key=distance[i].__getitem__)
            comparison.add('boxes', distance[i, j])
            comparison.add('scores', gap[i, j])
    alone_a = np.delete(scores_a, [*partner])
    alone_b = np.delete(scores_b, [*partner.values()])
    for alone, full in ((alone_a, scores_a), (alone_b, scores_b)):
        is_tie = np.abs(alone - score_thr) <= TOLERANCE
        if len(full) == max_per_img:
            is_tie |= alone <= full.min() + TOLERANCE
        comparison.ties += int(is_tie.sum())
        comparison.others += int((~is_tie).sum())
    comparison.alike += len(partner)


def _split(predictions: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dets, labels = predictions['dets'][0], predictions['labels'][0]
    return dets[:, :4], dets[:, 4], labels


def report(comparisons: Sequence[Comparison], network: ExportedNetwork) -> str:
    """Write what was compared as a Markdown table."""
    header = ['output', *(comparison.runtime for comparison in comparisons)]
    rows = [
        [name, *(f'{comparison.differences[name]:.1e}' for comparison in comparisons)]
        for name in comparisons[0].differences
    ]
    unit = {'detection': 'detections', 'segmentation': 'pixels'}.get(network.task)
    if unit:
        rows.append(
            [unit, *(f'{c.alike} alike, {c.ties} ties, {c.others} not' for c in comparisons)]
        )
    return make_table(header, rows, numbers=len(comparisons))
