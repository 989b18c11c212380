"""Derivatives of any order and kind: twice backward, forward mode, torch.func, vmap.

All in double precision, in which a sum in another order flips no ReLU. Batch norm updates its
statistics in place, which torch.func does not let any network do, so there they are in eval mode.
"""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from tests.helpers import POSITIONS, assert_close, build, gradients, loss_of

# Maps of 10 x 9, 5 x 5, 3 x 3 and 2 x 2: windows at the border, whole ones, and none that is whole.
ARCH = dict(
    base_channels=4,
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 2, 2),
    feedforward_channels=(6, 6, 6, 6),
    window_sizes=((2, 4), (2, 4), (4, 2), (4, 4)),
    drop_rates=(0.0, 0.0, 0.0, 0.0),
    last_drop_rate=0.0,
)
SIZE = (40, 36)
both_positions = pytest.mark.parametrize('position', POSITIONS)


def make(position, batch=1, **kwargs):
    """Build a network and images for it."""
    net = build(ARCH, position=position, **kwargs).double()
    return net, torch.randn(batch, 3, *SIZE, dtype=torch.float64)


def as_function(net):
    """Return the network as a function of its parameters and images, and the parameters."""
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    return lambda parameters, x: functional_call(net, parameters, (x,)), parameters


def directions(parameters):
    return {name: torch.randn_like(p) for name, p in parameters.items()}


def slope(function, at, direction, step=1e-6):
    """Return the central differences of a function that returns several tensors."""
    ahead, behind = (
        function({name: p + sign * step * direction[name] for name, p in at.items()})
        for sign in (1, -1)
    )
    return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]


def along_a_few_lines(position, training, pre_norm):
    """Return a function of a few numbers, and those numbers.

    Each moves the image, or one kind of parameter in all blocks at once, along a line of its own;
    the function gives a weighted mean of each map.
    """
    net, x = make(position, batch=2 if training else 1, pre_norm=pre_norm)
    net.train(training)
    at = {name: p.detach() for name, p in net.named_parameters()} | {'image': x}
    along = directions(at)
    weights = [torch.randn_like(m) for m in net(x)]
    lines = {name: LINES.index(find_line(name)) for name in at}
    assert {*lines.values()} == {*range(len(LINES))}

    def function(numbers):
        moved = {name: at[name] + numbers[lines[name]] * along[name] for name in at}
        maps = functional_call(net, moved, (moved.pop('image'),))
        return torch.stack([(m * w).mean() for m, w in zip(maps, weights, strict=True)])

    return function, torch.zeros(len(LINES), dtype=x.dtype, requires_grad=True)


LINES = ['image', 'qkv', 'proj', 'fc1', 'fc2', 'position', 'norm', 'conv', 'downsample']


def find_line(name):
    return next(line for line in LINES if line in name)


@both_positions
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('pre_norm', [False, True])
def test_gradients_are_those_of_finite_differences(position, training, pre_norm):
    function, numbers = along_a_few_lines(position, training, pre_norm)
    assert torch.autograd.gradcheck(function, numbers)


# Each value of each option with each of another.
@pytest.mark.parametrize(
    ('position', 'training', 'pre_norm'),
    [
        ('absolute', False, False),
        ('absolute', True, True),
        ('relative', False, True),
        ('relative', True, False),
    ],
)
def test_second_derivatives_are_those_of_finite_differences(position, training, pre_norm):
    function, numbers = along_a_few_lines(position, training, pre_norm)
    assert torch.autograd.gradgradcheck(function, numbers)


@both_positions
def test_a_penalty_on_the_gradient_of_the_image_trains_every_parameter(position):
    net, x = make(position, batch=2)
    (image_grad,) = torch.autograd.grad(
        loss_of(net.train()(x.requires_grad_())), x, create_graph=True
    )
    image_grad.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@both_positions
def test_func_grad_is_what_backward_gives(position):
    net, x = make(position, batch=2)
    function, parameters = as_function(net)
    found = grad(lambda parameters: loss_of(function(parameters, x)))(parameters)
    assert_close([*found.values()], gradients(net, x), 1e-9)


@both_positions
def test_gradients_of_each_image_at_once_are_those_of_a_loop(position):
    net, x = make(position, batch=3)
    function, parameters = as_function(net)

    def loss(parameters, image):
        return loss_of(function(parameters, image[None]))

    at_once = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(3):
        expected = gradients(net, x[i : i + 1])
        assert_close([g[i] for g in at_once.values()], expected, 1e-9)


@both_positions
@pytest.mark.parametrize('with_grad', [False, True])
def test_vmap_over_images_is_a_batch(position, with_grad):
    net, x = make(position, batch=3)
    with torch.set_grad_enabled(with_grad):
        found = vmap(lambda image: net(image[None]))(x)
        assert_close([m[:, 0] for m in found], net(x), 1e-9)


@both_positions
def test_vmap_over_batches_has_the_gradients_of_one_large_batch(position):
    net, x = make(position, batch=6)
    parameters = [*net.parameters()]
    found = vmap(net)(x.view(2, 3, *x.shape[1:]))
    found = torch.autograd.grad(loss_of(found), parameters)
    assert_close(found, gradients(net, x), 1e-9)


@both_positions
@pytest.mark.parametrize('with_grad', [False, True])
def test_vmap_over_networks_is_an_ensemble(position, with_grad):
    nets = [make(position)[0] for _ in range(2)]
    x = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    parameters, buffers = stack_module_state(nets)
    with torch.set_grad_enabled(with_grad):
        found = vmap(lambda *state: functional_call(nets[0], state, (x,)))(parameters, buffers)
        for i, net in enumerate(nets):
            assert_close([m[i] for m in found], net(x), 1e-9)


@both_positions
def test_jvp_is_the_slope_along_images_and_parameters(position):
    net, x = make(position)
    function, parameters = as_function(net)
    at = dict(parameters, x=x)
    along = directions(at)

    def call(at):
        at = dict(at)
        return function({k: at[k] for k in parameters}, at['x'])

    maps, found = jvp(call, (at,), (along,))
    assert_close(maps, net(x), 1e-9)
    assert_close(found, slope(call, at, along), 1e-6)


@both_positions
@pytest.mark.parametrize('with_grad', [False, True])
def test_forward_mode_of_an_image_is_the_slope_along_it(position, with_grad):
    net, x = make(position)
    along = torch.randn_like(x)
    with torch.set_grad_enabled(with_grad), forward_ad.dual_level():
        maps = net(forward_ad.make_dual(x, along))
        tangents = [forward_ad.unpack_dual(m).tangent for m in maps]
    assert all(tangent is not None for tangent in tangents)
    assert_close(tangents, slope(lambda at: net(at['x']), {'x': x}, {'x': along}), 1e-6)


@both_positions
@pytest.mark.parametrize('name', ['qkv', 'proj', 'fc1', 'fc2', 'position'])
def test_forward_mode_reaches_the_last_map_from_every_part_of_an_encoder(position, name):
    net, x = make(position)
    function, parameters = as_function(net)
    # A tangent that got lost on the way would be zero, and nobody told.
    at = {key: p for key, p in parameters.items() if f'.{name}.' in key}
    assert len(at) >= 8
    along = directions(at)

    def call(at):
        return function({**parameters, **at}, x)

    found = jvp(call, (at,), (along,))[1]
    assert all(tangent.abs().max() > 0 for tangent in found)
    assert_close(found, slope(call, at, along), 1e-6)


@both_positions
def test_a_hessian_vector_product_is_the_slope_of_the_gradient(position):
    net, x = make(position)
    function, parameters = as_function(net)
    along = directions(parameters)

    def gradient(parameters):
        return grad(lambda parameters: loss_of(function(parameters, x)))(parameters)

    found = jvp(gradient, (parameters,), (along,))[1]
    expected = slope(lambda at: [*gradient(at).values()], parameters, along)
    for name, a, b in zip(parameters, found.values(), expected, strict=True):
        # Nothing depends on the keys' bias: a softmax does not see what all its logits have.
        assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-6, name
