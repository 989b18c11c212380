"""Parameters and multiply-adds of a config's model, as a table beside what was published.

What papers call the FLOPs of a network are mostly multiply-adds (MACs): one for each product in a
convolution, a linear layer or an attention. Here they are called by that name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from contnet_mm.apis.config import read_config
from contnet_mm.models.window_attention import force_way
from contnet_mm.models.window_layout import Way
from contnet_mm.utils import markdown

# Height and width in pixels at which the models of each library are usually compared.
DEFAULT_SIZES = {'mmdet': (800, 1280), 'mmpretrain': (224, 224), 'mmseg': (512, 1024)}

# Parameters in M and "FLOPs" in G in the tables of the official README, by the first one or two
# fields of a config's name. FLOPs of ConTNet are multiply-adds of convolutions and linear layers,
# those of DeiT have the attention in them. The image size behind the detectors' is not published.
PUBLISHED = {
    'contnet-ti': (5.8, 0.8),
    'contnet-s': (10.1, 1.5),
    'contnet-m': (19.2, 3.1),
    'contnet-b': (39.6, 6.4),
    'resnet18': (11.7, 1.8),
    'resnet50': (25.6, 4.0),
    'resnet101': (44.5, 7.6),
    'deit-tiny': (5.7, 1.3),
    'deit-small': (22.1, 4.6),
    'deit-base': (86.6, 17.6),
    'retinanet_r50': (32.0, 235.6),
    'retinanet_contnet-m': (27.0, 217.2),
    'fcos_r50-caffe': (32.2, 242.9),
    'fcos_contnet-m': (27.2, 228.4),
    'faster-rcnn_r50': (41.5, 241.0),
    'faster-rcnn_contnet-m': (36.6, 225.6),
}
PUBLISHED_DATA = ('coco', 'in1k')  # the last field of such a config's name

# What the usual configs propose in a test, but fixed, so that random weights decide nothing.
NUM_PROPOSALS = 1000

DENSE = ('convolution', '_convolution', 'addmm', 'mm')  # operators with weights

COLUMNS = (
    ('config', 'input', 'parameters (M)', 'convolution + linear (GMACs)')
    + ('attention (GMACs)', 'total (GMACs)')
    + ('published parameters (M)', 'published FLOPs (G)')
)


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

    Nothing is computed: the pass runs on shapes alone, torch's meta device. Windows count as they
    are executed: smaller where a map ends. Norms, activations, pooling and mmcv's operators do not
    count.

    Args:
        model: Any model; it is not changed.
        inputs: Its input, [B, C, H, W]; only the shape matters.
        **kwargs: Further arguments of its ``forward``.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tensor.detach().to('meta') for name, tensor in tensors.items()}
    # Kernels that take windows of all shapes at once would count as if all were whole.
    grouped = force_way(Way.GROUPED)
    with torch.no_grad(), grouped, FlopCounterMode(display=False) as counter:
        torch.func.functional_call(model, shapes, (inputs.to('meta'),), kwargs)
    macs = {'conv_linear_macs': 0, 'attention_macs': 0}
    for operator, flops in counter.get_flop_counts().get('Global', {}).items():
        # What multiplies two activations is a batched product, or a fused attention.
        dense = str(operator).removeprefix('aten.') in DENSE
        macs['conv_linear_macs' if dense else 'attention_macs'] += flops // 2
    return Complexity(params=sum(p.numel() for p in model.parameters()), **macs)


def count_config(config: Config, size: tuple[int, int]) -> Complexity:
    """Count the model of a config for one image, as :func:`count` does.

    Weights are neither loaded nor asked for, and post-processing is left out. A detector of two
    stages gets 1000 proposals, and what its library's own raw forward makes of them: Mask R-CNN
    draws 100 masks. A segmentor's auxiliary head has parameters, but no work in a test.

    Args:
        config: Of MMDetection, MMSegmentation or MMPretrain.
        size: Height and width of the image in pixels, taken as they are.

    Raises:
        ValueError: If the size is not positive, or the model cannot be run on shapes alone.
    """
    if min(size) < 1:
        raise ValueError(f'size must be two positive numbers, got {size[0]} {size[1]}')
    scope = config.default_scope
    with DefaultScope.overwrite_default_scope(scope):
        # Weights would be looked for in init_weights(), which nobody calls here.
        model = revert_sync_batchnorm(MODELS.build(config.model)).eval()
        samples = None
        if scope == 'mmdet':
            samples = [_detection_sample(size)]
            _fix_proposals(model)
        try:
            inputs = torch.empty(1, 3, *size, device='meta')
            return count(model, inputs, data_samples=samples, mode='tensor')
        except (NotImplementedError, RuntimeError) as error:
            raise ValueError(
                f'{type(model).__name__} cannot be counted at {size[0]}x{size[1]}: its forward '
                f'asks for the values of a tensor, or for another size: {error}'
            ) from error


def _detection_sample(size: tuple[int, int]) -> object:
    from mmdet.structures import DetDataSample

    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
    return DetDataSample(metainfo={**shapes, 'scale_factor': (1.0, 1.0)})


def _fix_proposals(model: nn.Module) -> None:
    """Make a detector of two stages independent of values: what it proposes, where it crops."""
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
    from mmengine.structures import InstanceData

    if not (getattr(model, 'with_rpn', False) and getattr(model, 'with_roi_head', False)):
        return
    rpn_head = model.rpn_head

    def predict(x: tuple[Tensor, ...], *args, **kwargs) -> list[InstanceData]:
        rpn_head(x)
        return [InstanceData(bboxes=x[0].new_empty(NUM_PROPOSALS, 4))]

    rpn_head.predict = predict
    for module in model.modules():
        if isinstance(module, SingleRoIExtractor):
            module.forward = _empty_crops(module.out_channels, *module.roi_layers[0].output_size)


def _empty_crops(*shape: int) -> Callable[..., Tensor]:
    return lambda feats, rois, *args, **kwargs: feats[0].new_empty(len(rois), *shape)


def find_published(name: str | Path) -> tuple[float, float] | None:
    """Return the published parameters in M and FLOPs in G for the name of a config, if any.

    >>> find_published('configs/fcos/fcos_contnet-m_fpn_gn-head_1x_coco.py')
    (27.2, 228.4)
    """
    fields = Path(name).stem.split('_')
    if fields[-1] not in PUBLISHED_DATA:
        return None
    return PUBLISHED.get('_'.join(fields[:2]), PUBLISHED.get(fields[0]))


def make_table(names: Iterable[str | Path], size: tuple[int, int] | None = None) -> str:
    """Count some configs and return a Markdown table with one row for each.

    Args:
        names: Paths or names of configs.
        size: Height and width of the image in pixels; by default that of ``DEFAULT_SIZES``. At
            any other no published values stand beside.

    Raises:
        ValueError: If a config cannot be found or counted.
    """
    rows = []
    for name in names:
        config = read_config(name)
        default = DEFAULT_SIZES[config.default_scope]
        height, width = size or default
        counted = count_config(config, (height, width))
        conv_linear, attention = counted.conv_linear_macs / 1e9, counted.attention_macs / 1e9
        numbers = (counted.params / 1e6, conv_linear, attention, conv_linear + attention)
        published = find_published(name) if (height, width) == default else None
        cells = [f'`{Path(name).stem}`', f'{height}x{width}', *(f'{n:.2f}' for n in numbers)]
        rows.append([*cells, *map(str, published or ('', ''))])
    return markdown.make_table(COLUMNS, rows, numbers=len(COLUMNS) - 2)


def renew_tables(page: Path) -> str:
    """Return the text of a Markdown page with its tables of complexity made anew.

    Such a table stands between ``<!-- complexity: begin CONFIG [CONFIG ...] -->`` and
    ``<!-- complexity: end -->``. The paths of configs are relative to the page, as in a link.

    Raises:
        ValueError: If the page does not exist, has no such marks or half of them, or if a config
            cannot be found or counted.
    """

    def renew(names: str) -> str:
        return make_table(name if '::' in name else page.parent / name for name in names.split())

    return markdown.renew_page(page, 'complexity', renew)
