"""Evaluate an ONNX file on the test data of a config, by the evaluators of the library."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from contnet_mm.export.images import change_pipeline, to_rgb
from contnet_mm.export.network import ExportedNetwork
from contnet_mm.export.runtimes import Session

Metrics = dict[str, float]
Predict = Callable[[dict], Sequence[object]]


def evaluate_file(network: ExportedNetwork, config: Config, session: Session) -> Metrics:
    """Return the metrics of a file; images are fitted into its size.

    Args:
        network: What the file was made of.
        config: Has a test data loader and a test evaluator.
        session: The file.
    """

    def predict(batch: dict) -> list[object]:
        samples = copy.deepcopy(batch['data_samples'])
        for inputs, sample in zip(batch['inputs'], samples, strict=True):
            found = session(to_rgb(inputs))
            network.add_prediction(sample, found, tuple(inputs.shape[1:]))
        return samples

    return _evaluate(config, predict, network if network.is_padded else None)


def evaluate_torch(network: ExportedNetwork, config: Config) -> Metrics:
    """Return the metrics of the model in torch, as the library tests it."""
    with torch.inference_mode():
        return _evaluate(config, network.model.test_step)


def _evaluate(config: Config, predict: Predict, fitted: ExportedNetwork | None = None) -> Metrics:
    if not config.get('test_dataloader') or not config.get('test_evaluator'):
        raise ValueError('the config has no test_dataloader or no test_evaluator')
    settings = copy.deepcopy(config.test_dataloader)
    settings.update(num_workers=0, persistent_workers=False)
    with (
        DefaultScope.overwrite_default_scope(config.default_scope),
        redirect_stdout(io.StringIO()),  # pycocotools prints
    ):
        loader = Runner.build_dataloader(settings)
        dataset = loader.dataset
        if fitted is not None:
            change_pipeline(dataset.pipeline, fitted.size)
        evaluator = Evaluator(copy.deepcopy(config.test_evaluator))
        evaluator.dataset_meta = dataset.metainfo
        for batch in loader:
            evaluator.process(predict(batch), batch)
        metrics = evaluator.evaluate(len(dataset))
    return {name: float(value) for name, value in metrics.items()}
