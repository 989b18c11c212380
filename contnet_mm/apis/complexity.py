"""Count parameters and multiply-adds of a config's model, in a table beside what was published.

What papers call the FLOPs of a network are mostly multiply-adds (MACs): one for each product in a
convolution, a linear layer or an attention. The convention ``'mmdet2'`` is that of the official
README's table of COCO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
import yaml
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from contnet_mm.apis.config import read_config, resources
from contnet_mm.utils import markdown

# Height and width in pixels at which the models of each library are usually compared.
DEFAULT_SIZES = {'mmdet': (800, 1280), 'mmpretrain': (224, 224), 'mmseg': (512, 1024)}

NUM_PROPOSALS = 1000  # as most configs in a test, but fixed: random weights shall decide nothing
DENSE = ('convolution', '_convolution', 'addmm', 'mm')  # operators with weights

MMDET2 = 'mmdet2'
# 1333 x 800 pixels padded to multiples of 224, as the official network needs it.
MMDET2_SIZE = (896, 1344)

COLUMNS = ('config', 'input', 'parameters (M)', 'convolution + linear (GMACs)', 'attention (GMACs)')
COLUMNS += ('total (GMACs)',)
MMDET2_COLUMNS = ('config', 'input', 'trainable parameters (M)', 'FLOPs (G)')
PUBLISHED = ('published parameters (M)', 'published FLOPs (G)')


@dataclass(frozen=True)
class Complexity:
    """Size of a model, and its work for one input.

    Args:
        params: Number of parameters, frozen ones included.
        conv_linear_macs: Multiply-adds of convolutions and linear layers.
        attention_macs: Multiply-adds of products of two activations: queries by keys, and
            attention weights by values.
    """

    params: int
    conv_linear_macs: int
    attention_macs: int


def count(model: nn.Module, inputs: Tensor, **kwargs) -> Complexity:
    """Count a model's parameters and the multiply-adds of one forward pass.

    The pass runs on torch's meta device, which has shapes but no values; the model is not changed.
    Windows are whole, so tokens of padding count. Norms, activations, pooling and mmcv's operators
    do not count.

    Args:
        model: Any model.
        inputs: Its input, [B, C, H, W]; only the shape matters.
        **kwargs: Further arguments of its ``forward``.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tensor.detach().to('meta') for name, tensor in tensors.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(model, shapes, (inputs.to('meta'),), kwargs)
    macs = {'conv_linear_macs': 0, 'attention_macs': 0}
    for operator, flops in counter.get_flop_counts().get('Global', {}).items():
        # What multiplies two activations is a batched product, or a fused attention.
        dense = str(operator).removeprefix('aten.') in DENSE
        macs['conv_linear_macs' if dense else 'attention_macs'] += flops // 2
    return Complexity(params=sum(p.numel() for p in model.parameters()), **macs)


def count_config(config: Config, size: tuple[int, int]) -> Complexity:
    """Count the model of a config for one image, as :func:`count` does.

    Weights are not loaded, and post-processing is left out. A detector of two stages gets 1000
    proposals, and what its library's own raw forward makes of them: Mask R-CNN predicts 100 masks.
    A segmentor's auxiliary head has parameters, but does nothing in a test.

    Args:
        config: Of MMDetection, MMSegmentation or MMPretrain.
        size: Height and width of the image in pixels, taken as they are.

    Raises:
        ValueError: If the size is not positive, or the model cannot be run on shapes alone.
    """

    def measure(model: nn.Module, **kwargs) -> Complexity:
        return count(model, torch.empty(1, 3, *size), **kwargs)

    return _measure(config, size, measure)


def count_mmdet2(config: Config, size: tuple[int, int]) -> tuple[int, int]:
    """Count the model of a config for one image as MMDetection 2 did, by MMCV's counter.

    It counts multiply-adds of modules: convolutions and linear layers with their biases, one per
    value for ReLU and pooling, two for a norm. Products inside attention are no module, and frozen
    parameters are left out. For arguments and errors see :func:`count_config`.

    Returns:
        Trainable parameters and multiply-adds.
    """
    from mmcv.cnn import get_model_complexity_info

    def measure(model: nn.Module, **kwargs) -> tuple[int, int]:
        model.to('meta').forward = partial(model.forward, **kwargs)
        macs, params = get_model_complexity_info(
            model, (3, *size), print_per_layer_stat=False, as_strings=False
        )
        return params, macs

    return _measure(config, size, measure)


def _measure(config: Config, size: tuple[int, int], measure: Callable):
    """Call ``measure`` with a config's model and the arguments of its raw forward."""
    if min(size) < 1:
        raise ValueError(f'size must be two positive numbers, got {size[0]} {size[1]}')
    with DefaultScope.overwrite_default_scope(config.default_scope):
        # Weights would be loaded by init_weights(), which is not called here.
        model = revert_sync_batchnorm(MODELS.build(config.model)).eval()
        samples = _prepare_detector(model, size) if config.default_scope == 'mmdet' else None
        try:
            return measure(model, data_samples=samples, mode='tensor')
        except (NotImplementedError, RuntimeError) as error:
            raise ValueError(
                f'{type(model).__name__} cannot be counted at {size[0]}x{size[1]}: its forward '
                f'asks for the values of a tensor, or for another size: {error}'
            ) from error


def _prepare_detector(model: nn.Module, size: tuple[int, int]) -> list:
    """Fix proposals and crops of a two-stage detector, which depend on values; return samples."""
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    def predict(x: tuple[Tensor, ...], *args, **kwargs) -> list[InstanceData]:
        model.rpn_head(x)
        return [InstanceData(bboxes=x[0].new_empty(NUM_PROPOSALS, 4))]

    def crop(extractor: nn.Module, feats: tuple[Tensor, ...], rois: Tensor, *_, **__) -> Tensor:
        shape = extractor.out_channels, *extractor.roi_layers[0].output_size
        return feats[0].new_empty(len(rois), *shape)

    if getattr(model, 'with_rpn', False) and getattr(model, 'with_roi_head', False):
        model.rpn_head.predict = predict
        for module in model.modules():
            if isinstance(module, SingleRoIExtractor):
                module.forward = partial(crop, module)
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
    return [DetDataSample(metainfo={**shapes, 'scale_factor': (1.0, 1.0)})]


def find_published(name: str | Path) -> tuple[float, float] | None:
    """Return the published parameters in M and FLOPs in G for the name of a config, if any.

    >>> find_published('configs/fcos/fcos_contnet-m_fpn_gn-head_1x_coco.py')
    (27.2, 228.4)
    """
    return _read_published().get(_key(Path(name).stem))


@cache
def _read_published() -> dict[tuple[str, ...], tuple[float, float]]:
    """Return what metafiles say of the tables of the official README.

    FLOPs of ConTNet are multiply-adds of convolutions and linear layers there; those of DeiT
    include attention.
    """
    found = {}
    for path in (resources() / 'configs').glob('*/metafile.yml'):
        for model in yaml.safe_load(path.read_text(encoding='utf-8'))['Models']:
            values = model.get('Published', {})
            if 'FLOPs (G)' in values:
                found[_key(model['Name'])] = values['Parameters (M)'], values['FLOPs (G)']
    return found


def _key(name: str) -> tuple[str, ...]:
    """Return what names a published model: network, or detector and backbone, and data."""
    fields = name.split('_')
    return (*fields[: 1 if fields[-1] == 'in1k' else 2], fields[-1])


def make_table(
    names: Iterable[str | Path],
    size: tuple[int, int] | None = None,
    convention: str | None = None,
) -> str:
    """Count some configs and return a Markdown table with one row for each.

    Published values stand beside where they can be compared: those of classifiers at 224 x 224
    pixels, and those of detectors by ``'mmdet2'`` at 896 x 1344.

    Args:
        names: Paths or names of configs.
        size: Height and width of the image in pixels; by default that of ``DEFAULT_SIZES``, or of
            the published values.
        convention: ``'mmdet2'`` counts as :func:`count_mmdet2` does, None as :func:`count_config`.

    Raises:
        ValueError: If a config cannot be found or counted.
    """
    rows, compared = [], False
    for name in names:
        config = read_config(name)
        library, by_mmdet2 = config.default_scope, convention == MMDET2
        default = MMDET2_SIZE if by_mmdet2 and library == 'mmdet' else DEFAULT_SIZES[library]
        height, width = size or default
        if by_mmdet2:
            numbers = count_mmdet2(config, (height, width))
            numbers = numbers[0] / 1e6, numbers[1] / 1e9
        else:
            counted = count_config(config, (height, width))
            dense, attention = counted.conv_linear_macs / 1e9, counted.attention_macs / 1e9
            numbers = (counted.params / 1e6, dense, attention, dense + attention)
        is_comparable = (height, width) == default and by_mmdet2 == (library == 'mmdet')
        published = find_published(name) if is_comparable else None
        compared = compared or published is not None
        cells = [f'`{Path(name).stem}`', f'{height}x{width}', *(f'{n:.2f}' for n in numbers)]
        rows.append([*cells, *(published or ('', ''))])
    columns = (MMDET2_COLUMNS if convention == MMDET2 else COLUMNS) + PUBLISHED
    if not compared:
        columns, rows = columns[:-2], [row[:-2] for row in rows]
    return markdown.make_table(columns, rows, numbers=len(columns) - 2)


def renew_tables(page: Path) -> str:
    """Return the text of a Markdown page with its tables of complexity made anew.

    They are marked as :func:`~contnet_mm.utils.markdown.renew_page` says, by the name
    ``complexity`` and paths of configs, relative to the page as in a link; ``--convention mmdet2``
    may stand before them.

    Raises:
        ValueError: If the marks are wrong, or if a config cannot be found or counted.
    """

    def renew(text: str) -> str:
        names, convention = text.split(), None
        if names[0] == '--convention':
            _, convention, *names = names
        paths = (name if '::' in name else page.parent / name for name in names)
        return make_table(paths, convention=convention)

    return markdown.renew_page(page, 'complexity', renew)
