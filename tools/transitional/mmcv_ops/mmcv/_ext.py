"""The operations of mmcv that detectors need, computed by torchvision and plain torch.

Takes the place of the extension that mmcv compiles, whose file Python prefers where both exist.
Signatures are those of mmcv's operations: results are written into tensors that the caller passes.
Operations that are not here raise when they are called.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms  # also loads torchvision's operators

COMMAND = 'python -m contnet_mm doctor'  # prints how to build the compiled operations here
FLOAT_MIN = torch.finfo(torch.float32).tiny


def __getattr__(name: str):
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*args, **kwargs):
        _refuse(f'mmcv operation {name}')

    return missing


def _refuse(what: str) -> None:
    raise NotImplementedError(
        f'{what} is not among those that torchvision computes in place of mmcv; it needs the '
        'compiled operations: `make setup OPS=mmcv` in a checkout of contnet_mm, or '
        f'`{COMMAND}` names the command for this environment'
    )


def get_compiler_version() -> str:
    """Return what stands where mmcv names its compiler."""
    return "none (torchvision's operations)"


def get_compiling_cuda_version() -> str:
    """Return the CUDA version of torchvision's operations, or ``'not available'``."""
    version = torch.ops.torchvision._cuda_version()
    return 'not available' if version < 0 else f'{version // 1000}.{version % 1000 // 10}'


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices [K] of the boxes [N, 4] that are kept, by falling score.

    Boxes of equal scores come in the order of mmcv's sort, which the one inside torchvision's nms
    then keeps; the threshold has the precision of float32, as in mmcv.
    """
    if offset:
        _refuse(f'nms with offset={offset}')
    if boxes.dtype != torch.float32:
        raise TypeError(f'nms takes boxes of torch.float32 as in mmcv, got {boxes.dtype}')
    order = scores.sort(0, descending=True).indices
    return order[torchvision_nms(boxes[order], scores[order], float(np.float32(iou_threshold)))]


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Crop regions [K, 5] out of maps [B, C, H, W] into output [K, C, height, width]."""
    if pool_mode != 1:
        _refuse("roi_align with pool_mode='max'")
    size = aligned_height, aligned_width
    output.copy_(
        torch.ops.torchvision.roi_align(input, rois, spatial_scale, *size, sampling_ratio, aligned)
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the maps, [B, C, H, W], into grad_input."""
    size = aligned_height, aligned_width
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output, rois, spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned
        )
    )


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss of each logit [N, C] into output (arXiv 1708.02002, equation 5).

    Labels [N] outside [0, C) are background. The weight [C] is that of the label's class.
    """
    is_label, p, log_p, log_q = _focal_terms(input, target)
    positive = -alpha * (1 - p) ** gamma * log_p
    negative = -(1 - alpha) * p**gamma * log_q
    output.copy_(_weighted(torch.where(is_label, positive, negative), target, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of the focal loss by each logit [N, C] into grad_input."""
    is_label, p, log_p, log_q = _focal_terms(input, target)
    positive = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * log_p)
    negative = -(1 - alpha) * p**gamma * (gamma * (1 - p) * log_q - p)
    grad_input.copy_(_weighted(torch.where(is_label, positive, negative), target, weight))


def _focal_terms(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return where the label is, [N, C], the probability p, and the logarithms of p and 1 - p."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    p = logits.sigmoid()
    return (
        target[:, None] == classes,
        p,
        p.clamp_min(FLOAT_MIN).log(),
        (1 - p).clamp_min(FLOAT_MIN).log(),
    )


def _weighted(loss: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return loss * weight[target][:, None] if weight.numel() else loss


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Convolve at offset positions, weighted by a mask (deformable convolution, version 2)."""
    bias = bias if with_bias else weight.new_zeros(len(weight))
    output.copy_(
        torch.ops.torchvision.deform_conv2d(
            input, weight, offset, mask, bias, *_geometry(geometry), True
        )
    )


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Write the gradients of all five inputs into the tensors passed for them."""
    bias = bias if with_bias else weight.new_zeros(len(weight))
    gradients = torch.ops.torchvision._deform_conv2d_backward(
        grad_output, input, weight, offset, mask, bias, *_geometry(geometry), True
    )
    targets = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for target, gradient in zip(targets[: 4 + with_bias], gradients, strict=False):
        target.copy_(gradient)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    """Convolve at offset positions (deformable convolution, version 1)."""
    none, bias = _unused(input, weight)
    output.copy_(
        torch.ops.torchvision.deform_conv2d(
            input, weight, offset, none, bias, *_geometry(geometry), False
        )
    )


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Write the gradients of maps and offsets into the tensors passed for them."""
    gradients = _deform_conv_backward(input, offset, grad_output, weight, geometry)
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **geometry: int,
) -> None:
    """Add the gradient of the weight, times a scale, to grad_weight."""
    gradients = _deform_conv_backward(input, offset, grad_output, grad_weight, geometry)
    grad_weight.add_(gradients[1], alpha=scale)


def _deform_conv_backward(
    input: Tensor, offset: Tensor, grad_output: Tensor, weight: Tensor, geometry: dict[str, int]
) -> tuple[Tensor, ...]:
    return torch.ops.torchvision._deform_conv2d_backward(
        grad_output, input, weight, offset, *_unused(input, weight), *_geometry(geometry), False
    )


def _unused(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mask and the bias of a convolution that has neither."""
    return input.new_zeros((len(input), 1)), weight.new_zeros(len(weight))


def _geometry(given: dict[str, int]) -> tuple[int, ...]:
    """Return stride, padding and dilation, height before width each, and the two groups."""
    names = ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w')
    names_of_version_1 = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW')
    names = names if 'stride_h' in given else names_of_version_1
    return (*(given[name] for name in names), given['group'], given['deformable_group'])


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Attend to points of several maps by mmcv's own version in plain torch.

    Args:
        value: [B, keys, heads, C / heads].
        spatial_shapes: Height and width of each map, [levels, 2].
        level_start_index: First key of each map, [levels]; follows from the shapes.
        sampling_locations: [B, queries, heads, levels, points, 2], x and y in [0, 1].
        attention_weights: [B, queries, heads, levels, points].
        im2col_step: Images at a time; has no meaning here.

    Returns:
        [B, queries, C].
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(
        value, spatial_shapes.tolist(), sampling_locations, attention_weights
    )


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of values, locations and weights into the tensors passed for them."""
    inputs = [x.detach().requires_grad_() for x in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            inputs[0], spatial_shapes, level_start_index, *inputs[1:], im2col_step
        )
    targets = (grad_value, grad_sampling_loc, grad_attn_weight)
    for target, gradient in zip(
        targets, torch.autograd.grad(output, inputs, grad_output), strict=True
    ):
        target.copy_(gradient)
