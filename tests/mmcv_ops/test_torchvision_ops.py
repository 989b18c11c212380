"""torchvision's operations in place of mmcv's: equal to the compiled ones, or refused."""

import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import ROOT

FILE = ROOT / 'tools' / 'transitional' / 'mmcv_ops' / 'mmcv' / '_ext.py'
SPEC = importlib.util.spec_from_file_location('torchvision_ops_for_mmcv', FILE)
OURS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(OURS)
THRESHOLDS = (0.0, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.6, 0.65, 0.7, 1.0)


def both(call):
    """Return what a call of mmcv's gives with the compiled operations, and with ours."""
    import mmcv._ext as compiled
    import mmcv.ops  # noqa: F401 (loads the modules below)

    modules = [
        module
        for name, module in sys.modules.items()
        if name.startswith('mmcv.ops.') and getattr(module, 'ext_module', None) is compiled
    ]
    expected = call()
    try:
        for module in modules:
            module.ext_module = OURS
        return expected, call()
    finally:
        for module in modules:
            module.ext_module = compiled


def boxes_of(corners):
    """Return boxes [N, 4] from their corners, in any order."""
    corners = torch.tensor(corners, dtype=torch.float32).reshape(-1, 2, 2)
    return torch.cat([corners.amin(1), corners.amax(1)], 1)


def random_boxes(number, extent=100.0):
    centres, sizes = torch.rand(number, 2) * extent, torch.rand(number, 2) * extent / 4
    return torch.cat([centres - sizes, centres + sizes], 1)


# Few values make ties of scores, equal boxes, boxes without area, and overlaps at the threshold.
COORDINATES = st.integers(0, 6).map(float) | st.floats(0, 50, width=32)
BOXES = st.lists(
    st.tuples(
        st.tuples(*[COORDINATES] * 4),
        st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]) | st.floats(0, 1, width=32),
    ),
    max_size=30,
)


@pytest.mark.mmcv_ops
@settings(max_examples=500, deadline=None)
@given(BOXES, st.sampled_from(THRESHOLDS) | st.floats(0, 1))
def test_nms_keeps_the_same_boxes_in_the_same_order(items, threshold):
    from mmcv.ops import nms

    boxes = boxes_of([corners for corners, _ in items])
    scores = torch.tensor([score for _, score in items], dtype=torch.float32)
    (expected, indices), (found, ours) = both(lambda: nms(boxes, scores, threshold))
    assert ours.dtype == indices.dtype and torch.equal(ours, indices)
    assert torch.equal(found, expected)


@pytest.mark.mmcv_ops
@pytest.mark.parametrize('threshold', [0.3, 0.7])
def test_nms_keeps_the_same_of_ten_thousand_boxes(threshold):
    from mmcv.ops import nms

    boxes, scores = random_boxes(10_000, 300.0), torch.rand(10_000).mul(50).round() / 50
    (_, expected), (_, found) = both(lambda: nms(boxes, scores, threshold))
    assert 10 < len(expected) < 10_000 and torch.equal(found, expected)


@pytest.mark.mmcv_ops
@pytest.mark.parametrize('number', [0, 1, 200])
@pytest.mark.parametrize('options', [{}, dict(split_thr=50), dict(max_num=7, score_threshold=0.2)])
@pytest.mark.parametrize('class_agnostic', [False, True])
def test_batched_nms_keeps_the_same_boxes(number, options, class_agnostic):
    from mmcv.ops import batched_nms

    boxes, scores, labels = random_boxes(number), torch.rand(number), torch.arange(number) % 3
    if not number and not class_agnostic:
        return  # mmcv itself asks for the largest coordinate of no box
    config = dict(type='nms', iou_threshold=0.5, **options)
    expected, found = both(lambda: batched_nms(boxes, scores, labels, config, class_agnostic))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.mmcv_ops
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_nms_refuses_the_types_that_mmcv_refuses(dtype):
    import mmcv._ext as compiled

    boxes, scores = random_boxes(3).to(dtype), torch.rand(3).to(dtype)
    for module in (compiled, OURS):
        with pytest.raises((RuntimeError, TypeError), match='(?i)float'):
            module.nms(boxes, scores, iou_threshold=0.5, offset=0)


ROIS = [
    (0, 0.0, 0.0, 15.0, 11.0),
    (1, 3.3, 2.2, 3.3, 2.2),  # without area
    (1, -4.0, -3.0, 40.0, 30.0),  # over the border
    (1, 7.1, 0.4, 9.7, 10.9),
    (0, 5.0, 6.0, 2.0, 1.0),  # corners the wrong way round: mmcv refuses them if aligned
]


@pytest.mark.mmcv_ops
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('sampling_ratio', [0, 1, 2, 3])
@pytest.mark.parametrize(('size', 'scale'), [((7, 7), 1.0), ((3, 5), 0.5), (1, 0.25)])
@pytest.mark.parametrize('number', [1, 5])
def test_roi_align_and_its_gradient_are_equal(dtype, aligned, sampling_ratio, size, scale, number):
    from mmcv.ops import roi_align

    maps = torch.randn(2, 3, 12, 16, dtype=dtype, requires_grad=True)
    rois = torch.tensor(ROIS[: number - aligned], dtype=dtype).reshape(-1, 5)

    def call():
        out = roi_align(maps, rois, size, scale, sampling_ratio, 'avg', aligned)
        return out, *torch.autograd.grad(out.sin().sum(), maps)

    expected, found = both(call)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def focal_loss_by_the_paper(logits, target, weight, gamma, alpha):
    """Return FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t), one value at a time."""
    loss = torch.empty_like(logits)
    for n, label in enumerate(target.tolist()):
        for c in range(logits.shape[1]):
            p = 1 / (1 + math.exp(-logits[n, c]))
            p_t, alpha_t = (p, alpha) if c == label else (1 - p, 1 - alpha)
            loss[n, c] = -alpha_t * (1 - p_t) ** gamma * math.log(p_t)
            if weight is not None:
                loss[n, c] *= weight[label]
    return loss


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.9)])
def test_focal_loss_is_the_paper_s_and_its_gradient_the_derivative(weighted, gamma, alpha):
    logits = 3 * torch.randn(6, 4, dtype=torch.float64)
    target = torch.tensor([0, 3, 1, 2, 3, 0] if weighted else [0, 4, 1, 2, -1, 3])  # 4, -1: none
    weight = torch.rand(4, dtype=torch.float64) if weighted else None
    given_weight = logits.new_empty(0) if weight is None else weight
    loss, gradient = torch.zeros_like(logits), torch.zeros_like(logits)
    OURS.sigmoid_focal_loss_forward(logits, target, given_weight, loss, gamma=gamma, alpha=alpha)
    OURS.sigmoid_focal_loss_backward(
        logits, target, given_weight, gradient, gamma=gamma, alpha=alpha
    )
    torch.testing.assert_close(loss, focal_loss_by_the_paper(logits, target, weight, gamma, alpha))
    step = 1e-6
    above, below = (
        focal_loss_by_the_paper(logits + sign * step, target, weight, gamma, alpha)
        for sign in (1, -1)
    )
    torch.testing.assert_close(gradient, (above - below) / (2 * step), rtol=1e-6, atol=1e-8)


def test_focal_loss_of_extreme_logits_is_finite():
    logits, target = torch.tensor([[-200.0, 200.0]]), torch.tensor([0])
    for operation in (OURS.sigmoid_focal_loss_forward, OURS.sigmoid_focal_loss_backward):
        out = torch.zeros_like(logits)
        operation(logits, target, logits.new_empty(0), out, gamma=2.0, alpha=0.25)
        assert out.isfinite().all()


GEOMETRIES = [
    dict(stride=1, padding=1, dilation=1, groups=1, deform_groups=1),
    dict(stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2, deform_groups=2),
]


def deform_inputs(kernel, stride, padding, dilation, groups, deform_groups):
    """Return maps, offsets, mask and weight of a deformable convolution, all with gradients."""
    size = (9, 11)

    def pair(value):
        return value if isinstance(value, tuple) else (value, value)

    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            size, pair(padding), pair(dilation), kernel, pair(stride), strict=True
        )
    ]
    area = kernel[0] * kernel[1]
    tensors = (
        torch.randn(2, 4, *size),
        torch.randn(2, 2 * deform_groups * area, *out),
        torch.rand(2, deform_groups * area, *out),
        torch.randn(6, 4 // groups, *kernel),
    )
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.mmcv_ops
@pytest.mark.parametrize('kernel', [(3, 3), (1, 3)])
@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('bias', [False, True])
def test_modulated_deformable_convolution_is_equal(kernel, geometry, bias):
    from mmcv.ops import modulated_deform_conv2d

    maps, offset, mask, weight = deform_inputs(kernel, **geometry)
    bias = torch.randn(6, requires_grad=True) if bias else None
    inputs = [x for x in (maps, offset, mask, weight, bias) if x is not None]

    def call():
        out = modulated_deform_conv2d(maps, offset, mask, weight, bias, *geometry.values())
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    for expected, found in zip(*both(call), strict=True):
        torch.testing.assert_close(
            found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
        )


@pytest.mark.mmcv_ops
@pytest.mark.parametrize('kernel', [(3, 3), (1, 3)])
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_deformable_convolution_is_equal(kernel, geometry):
    from mmcv.ops import deform_conv2d

    maps, offset, _, weight = deform_inputs(kernel, **geometry)

    def call():
        out = deform_conv2d(maps, offset, weight, *geometry.values())
        return out, *torch.autograd.grad(out.square().sum(), (maps, offset, weight))

    for expected, found in zip(*both(call), strict=True):
        torch.testing.assert_close(
            found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
        )


def test_multi_scale_deformable_attention_is_mmcv_s_own_and_so_is_its_gradient():
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    shapes = torch.tensor([[6, 4], [3, 2]])
    starts = torch.tensor([0, 24])
    inputs = [
        torch.randn(2, 30, 2, 4, dtype=torch.float64),
        torch.rand(2, 5, 2, 2, 3, 2, dtype=torch.float64),
        torch.rand(2, 5, 2, 2, 3, dtype=torch.float64),
    ]
    inputs = [x.requires_grad_() for x in inputs]
    module = sys.modules[MultiScaleDeformableAttnFunction.__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'ext_module', OURS)
        found = MultiScaleDeformableAttnFunction.apply(inputs[0], shapes, starts, *inputs[1:], 64)
        gradients = torch.autograd.grad(found.square().sum(), inputs)
    expected = multi_scale_deformable_attn_pytorch(inputs[0], shapes, *inputs[1:])
    assert torch.equal(found, expected)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize(
    ('call', 'what'),
    [
        (lambda: OURS.softnms(torch.zeros(1, 4), torch.zeros(1)), 'mmcv operation softnms'),
        (lambda: OURS.nms(torch.zeros(1, 4), torch.zeros(1), 0.5, offset=1), 'nms with offset=1'),
        (
            lambda: OURS.roi_align_forward(*[torch.zeros(0)] * 5, 1, 1, 1.0, 0, 0, True),
            "roi_align with pool_mode='max'",
        ),
    ],
)
def test_what_torchvision_does_not_compute_raises_when_it_is_called(call, what):
    with pytest.raises(NotImplementedError, match=f'{re.escape(what)}.*make setup OPS=mmcv'):
        call()


def test_private_names_are_missing_as_in_any_module():
    assert not hasattr(OURS, '__path__') and not hasattr(OURS, '_nothing')


def test_every_name_that_mmcv_looks_up_is_there():
    sources = ' '.join(f.read_text() for f in Path(mmcv.__path__[0], 'ops').glob('*.py'))
    names = set(re.findall(r'ext_module\.(\w+)', sources))
    assert len(names) > 100 and all(callable(getattr(OURS, name)) for name in names)


def test_the_libraries_import_with_it_alone():
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location('mmcv._ext', {str(FILE)!r})
sys.modules['mmcv._ext'] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import mmcv.ops, mmdet.models, mmseg.models, mmpretrain.models
print(mmcv.ops.get_compiling_cuda_version(), mmcv.ops.nms.__module__)
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith('mmcv.ops.nms\n')
