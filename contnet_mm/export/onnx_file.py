"""Write an exported network as ONNX, with a JSON file beside it that says what is in it."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.utils import digit_version
from torch import Tensor

from contnet_mm.export.network import IMAGE, VALID_SIZE, ExportedNetwork
from contnet_mm.export.tracing import pool_by_products
from contnet_mm.utils.files import write_file
from contnet_mm.version import __version__

# torch.export is whole from here on; before, torch.jit.trace records the network.
HAS_TORCH_EXPORT = digit_version(torch.__version__) >= digit_version('2.5')
OPSET = 18 if HAS_TORCH_EXPORT else 17
INPUTS = {
    IMAGE: 'RGB image of 0 to 255',
    VALID_SIZE: 'height and width of the image in the input; beyond it is padding',
}


def write_onnx(network: ExportedNetwork, path: Path, about: dict[str, object]) -> None:
    """Write an ONNX file and its description, each wholly or not at all.

    Args:
        network: What to export.
        path: The file; the description has the same name with .json.
        about: What else the description says.

    Raises:
        ModuleNotFoundError: If onnx is not installed.
        ValueError: If the model does not run at this size, or torch cannot export it.
    """
    model = make_onnx(network)
    write_file(path, model.SerializeToString())
    description = describe(network, model, about)
    write_file(path.with_suffix('.json'), json.dumps(description, indent=2, default=str) + '\n')


def make_onnx(network: ExportedNetwork) -> object:
    """Return the model of a network; its maps have names in it without being outputs."""
    import onnx

    args = example_inputs(network)
    with torch.no_grad():
        try:
            maps = network.compute_maps(network.normalize(*args))
        except RuntimeError as error:
            raise ValueError(
                f'the model does not run on {network.size[0]}x{network.size[1]}: {error}'
            ) from error
        names = network.name_maps(maps)
        try:
            content = _export(network, args, [*network.outputs, *names])
        except Exception as error:  # each version of the exporters has errors of its own
            raise ValueError(f"torch's exporter does not take the model: {error}") from error
    model = onnx.load_from_string(content)
    if network.outputs:
        for output in [o for o in model.graph.output if o.name in names]:
            model.graph.output.remove(output)
    for node in [*model.graph.node, *(n for f in model.functions for n in f.node)]:
        # Stack traces with the paths of this machine.
        del node.metadata_props[:]
        node.doc_string = ''
    onnx.checker.check_model(model)
    return model


def example_inputs(network: ExportedNetwork) -> tuple[Tensor, ...]:
    """Return inputs of the right shape: an image without padding."""
    image = torch.randint(0, 256, (1, 3, *network.size), dtype=torch.uint8)
    return (image, torch.tensor([network.size])) if network.is_padded else (image,)


def _export(network: ExportedNetwork, args: tuple[Tensor, ...], names: Sequence[str]) -> bytes:
    stream = io.BytesIO()
    options = dict(input_names=[*network.inputs], output_names=[*names], opset_version=OPSET)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of tracers about constants, which are meant to be such
        if not HAS_TORCH_EXPORT:
            with pool_by_products():
                torch.onnx.export(network, args, stream, **options)
            return stream.getvalue()
        # Warns once for each operation that it leaves as it is.
        logging.getLogger('onnxscript').setLevel(logging.ERROR)
        program = torch.onnx.export(network, args, dynamo=True, verbose=False, **options)
    return program.model_proto.SerializeToString()


def describe(
    network: ExportedNetwork, model: object, about: dict[str, object]
) -> dict[str, object]:
    """Return what a user of the file has to know."""
    described = dict(
        about,
        task=network.task,
        model=type(network.model).__name__,
        classes=network.classes,
        resize=network.resize,
        inputs={
            value.name: dict(_describe_value(value), content=INPUTS[value.name])
            for value in model.graph.input
        },
        outputs={value.name: _describe_value(value) for value in model.graph.output},
        written_by=f'contnet_mm {__version__}, torch {torch.__version__}',
    )
    return {key: value for key, value in described.items() if value}


def _describe_value(value: object) -> dict[str, object]:
    import onnx

    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    # A length that only the run tells has a name, or nothing.
    shape = [d.dim_value or None for d in kind.shape.dim]
    return dict(dtype=dtype, shape=shape)
