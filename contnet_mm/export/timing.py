"""Time an image: torch eager and compiled, and the file in each runtime, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from contnet_mm.benchmark.report import show_percentiles
from contnet_mm.export.network import ExportedNetwork
from contnet_mm.export.onnx_file import HAS_TORCH_EXPORT, example_inputs
from contnet_mm.export.runtimes import Session
from contnet_mm.utils.markdown import make_table

ROUNDS = 15
Step = Callable[[], object]


def time_all(network: ExportedNetwork, path: Path, runtimes: Sequence[str]) -> str:
    """Time one random image, normalisation and decoding included, and return a Markdown table.

    All use as many threads as torch. Each round times every way once, in turn, so that what slows
    the machine down for a while slows all; a round before warms up.

    Args:
        network: What the file was made of.
        path: The file.
        runtimes: What to run it with.
    """
    args = example_inputs(network)
    steps = _torch_steps(network, args)
    values = dict(zip(network.inputs, (arg.numpy() for arg in args), strict=True))
    for runtime in runtimes:
        session = Session(path, runtime, threads=torch.get_num_threads())
        steps[f'{runtime} {session.version}'] = lambda run=session.run: run(values)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(ROUNDS + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            with torch.inference_mode():
                step()
            if i:
                seconds[name].append(time.perf_counter() - began)
    eager = next(iter(seconds.values()))
    rows = [
        [
            name,
            show_percentiles([1000 * s for s in values]),
            show_percentiles([a / b for a, b in zip(values, eager, strict=True)]),
        ]
        for name, values in seconds.items()
    ]
    return make_table(('way', 'ms per image', '/ eager'), rows, numbers=2)


def _torch_steps(network: ExportedNetwork, args: tuple[Tensor, ...]) -> dict[str, Step]:
    """Return what torch runs; the compiler gets the layers, and decodes nothing."""
    steps: dict[str, Step] = {f'torch {torch.__version__} eager': lambda: network(*args)}
    if HAS_TORCH_EXPORT:
        from torch._inductor import config

        compiled = torch.compile(network.compute_maps, dynamic=False)
        valid_size = args[1] if network.is_padded else None

        def run() -> object:
            return network.decode(compiled(network.normalize(*args)), valid_size)

        with config.patch(freezing=True), torch.inference_mode():  # weights become constants
            run()
        steps[f'torch {torch.__version__} compiled'] = run
    return steps
