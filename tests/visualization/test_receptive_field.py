"""Fields of networks whose fields are known, and of ConTNet."""

import pytest
import torch
from torch import nn

from contnet_mm import ConTNet
from contnet_mm.visualization.receptive_field import (
    MARGIN,
    WINDOW,
    effective_receptive_field,
    side_holding,
)

SIDE = 64
SIZE = SIDE + 2 * MARGIN


class OneMap(nn.Sequential):
    def forward(self, x):
        return (super().forward(x),)


class WindowMean(nn.Module):
    """Gives each position the mean of its window."""

    def __init__(self, window):
        super().__init__()
        self.window = window

    def forward(self, x):
        mean = nn.functional.avg_pool2d(x, self.window, ceil_mode=True)
        mean = nn.functional.interpolate(mean, scale_factor=self.window)
        step = self.window // 7
        return (mean[..., : x.shape[2] : step, : x.shape[3] : step],)


def images(number=1, size=SIZE):
    return (torch.randn(1, 3, size, size) for _ in range(number))


@pytest.mark.parametrize(('kernel', 'stride'), [(3, 1), (5, 4), (33, 32)])
def test_the_field_of_a_convolution_is_its_kernel_around_the_position(kernel, stride):
    conv = nn.Conv2d(3, 4, kernel, stride, kernel // 2, bias=False)
    [field] = effective_receptive_field(OneMap(conv), images(), SIDE)
    low, high = SIDE // 2 - kernel // 2, SIDE // 2 + kernel // 2 + 1
    inside = field[low:high, low:high]
    assert inside.min() > 0 and float(field.sum()) == pytest.approx(1)
    assert float(inside.sum()) == pytest.approx(1)
    nn.init.constant_(conv.weight, 1)
    nn.init.constant_(conv.weight[:, :, kernel // 2, kernel // 2], 3)
    [field] = effective_receptive_field(OneMap(conv), images(), SIDE)
    assert float(field[SIDE // 2, SIDE // 2]) == pytest.approx(3 * float(field[low, low]), rel=1e-5)


def test_positions_go_through_a_whole_window():
    """The mean over all places in a window is wide and lies around the position."""
    side = 2 * WINDOW + 64
    size = side + 2 * MARGIN
    zeros = torch.zeros(1, 3, size, size)
    [one] = effective_receptive_field(WindowMean(WINDOW), [zeros], side)
    [all_places] = effective_receptive_field(WindowMean(WINDOW), [zeros] * 49, side)
    pixels = torch.arange(side) - side // 2

    def reach(field):
        rows = field.sum(1).nonzero().flatten() - side // 2
        return int(rows.min()), int(rows.max()) + 1

    assert reach(one)[1] - reach(one)[0] == WINDOW
    # A position has at least nothing and at most all but itself of its window above it.
    assert reach(all_places) == (-(WINDOW - 32), WINDOW)
    centre = float((all_places.sum(1) * pixels).sum())
    assert abs(centre) <= 16  # half a token of 32 pixels


def test_maps_behind_a_layer_norm_have_a_field(thin_arch):
    """The plain sum of their channels does not depend on the image."""
    net = ConTNet(thin_arch, feature_location='encoder').eval()
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    (grad,) = torch.autograd.grad(net(image)[0][0, :, 8, 8].sum(), image)
    fields = effective_receptive_field(net, images(2), SIDE)
    assert fields.shape == (4, SIDE, SIDE) and fields.isfinite().all() and (fields >= 0).all()
    assert all(0.05 < field.sum() <= 1.0001 for field in fields)
    assert grad.abs().max() < 1e-3 * fields[0].max()
    half = [side_holding(field / field.sum(), 0.5) for field in fields]
    assert half[0] < half[-1]


def test_fields_repeat_themselves(thin_arch):
    net, image = ConTNet(thin_arch).eval(), next(images())
    first, again = (effective_receptive_field(net, [image], SIDE, seed=3) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ('size', 'side', 'message'),
    [
        (SIZE, 63, 'side must be a multiple of 64, got 63'),
        (SIZE, 0, 'side must be a multiple of 64, got 0'),
        (224, 64, f'must be {SIZE} x {SIZE}, got .1, 3, 224, 224'),
    ],
)
def test_wrong_sizes_are_named(size, side, message):
    with pytest.raises(ValueError, match=message):
        effective_receptive_field(OneMap(nn.Conv2d(3, 1, 1)), images(size=size), side)


def test_a_network_without_maps_and_no_image_are_errors():
    flat = OneMap(nn.Flatten())
    with pytest.raises(ValueError, match='OneMap gives no maps of an image at output 0'):
        effective_receptive_field(flat, images(), SIDE)
    with pytest.raises(ValueError, match='there must be an image'):
        effective_receptive_field(flat, [], SIDE)
