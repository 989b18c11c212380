"""Run an ONNX file in another library than torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from contnet_mm.export.network import IMAGE, VALID_SIZE, Arrays, Size

Run = Callable[..., list[np.ndarray]]


class Session:
    """An ONNX file, ready to be called.

    Args:
        path: The file.
        runtime: ``'onnxruntime'`` or ``'openvino'``; both compute in float32 on the CPU.
        maps: Names of values that it shall return beside its outputs.
        threads: Number of threads; the runtime's own choice by default.

    Raises:
        ModuleNotFoundError: If the runtime is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        runtime: str = 'onnxruntime',
        maps: Sequence[str] = (),
        threads: int | None = None,
    ) -> None:
        make = {'onnxruntime': _start_onnxruntime, 'openvino': _start_openvino}[runtime]
        self.version, self.inputs, self.outputs, self._run = make(_read(path, maps), threads or 0)
        self.size: Size = tuple(self.inputs[IMAGE][2:])

    def __call__(self, pixels: np.ndarray) -> Arrays:
        """Run one image; return the outputs by name.

        Args:
            pixels: RGB, uint8 [3, h, w], at most of the file's size; the rest is padding.

        Raises:
            ValueError: If it is larger, or smaller and the file knows no padding.
        """
        height, width = pixels.shape[1:]
        missing = [a - b for a, b in zip(self.size, (height, width), strict=True)]
        if min(missing) < 0 or (max(missing) and VALID_SIZE not in self.inputs):
            raise ValueError(
                f'an image of {height}x{width} is given to a file for {self.size[0]}x{self.size[1]}'
            )
        image = np.pad(pixels, ((0, 0), (0, missing[0]), (0, missing[1])))[None]
        values = {IMAGE: image, VALID_SIZE: np.array([[height, width]])}
        return self.run({name: values[name] for name in self.inputs})

    def run(self, values: Arrays) -> Arrays:
        """Run on inputs by name; return the outputs by name."""
        return dict(zip(self.outputs, self._run(values), strict=True))


def _read(path: str | Path, maps: Sequence[str]) -> bytes:
    """Return an ONNX file with more outputs than it has."""
    content = Path(path).read_bytes()
    if not maps:
        return content
    import onnx

    model = onnx.load_from_string(content)
    known = {output.name for output in model.graph.output}
    new = [onnx.helper.make_empty_tensor_value_info(name) for name in maps if name not in known]
    model.graph.output.extend(new)
    return model.SerializeToString()


def _start_onnxruntime(content: bytes, threads: int) -> tuple:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = [value.name for value in session.get_outputs()]
    return onnxruntime.__version__, inputs, outputs, lambda values: session.run(outputs, values)


def _start_openvino(content: bytes, threads: int) -> tuple:
    import openvino

    core = openvino.Core()
    # By default newer processors compute in bfloat16.
    properties = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': threads}
    compiled = core.compile_model(core.read_model(content), 'CPU', properties)
    inputs = {
        value.any_name: [d.get_length() if d.is_static else None for d in value.partial_shape]
        for value in compiled.inputs
    }
    outputs = [value.any_name for value in compiled.outputs]

    def run(values: Arrays) -> list[np.ndarray]:
        found = compiled(values)
        return [found[name].copy() for name in outputs]

    return openvino.__version__.partition('-')[0], inputs, outputs, run
