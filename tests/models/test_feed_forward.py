"""The feed-forward half: gradients, and what it keeps for them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from contnet_mm.models.feed_forward import FeedForward
from contnet_mm.models.mode import Mode

DTYPES = [torch.float32, torch.float64]


def make(dtype=torch.float32, drop_rate=0.0):
    layer = FeedForward(6, 10, drop_rate).to(dtype)
    x = torch.randn(2, 7, 6, dtype=dtype, requires_grad=True)
    return layer, x, [x, *layer.parameters()]


def plain_feed_forward(layer, x):
    hidden = F.gelu(F.linear(x, layer.fc1.weight, layer.fc1.bias))
    return F.linear(hidden, layer.fc2.weight, layer.fc2.bias)


@pytest.mark.parametrize('mode', [Mode.PLAIN, Mode.TRAINING])
@pytest.mark.parametrize('dtype', DTYPES)
def test_values_and_gradients_are_those_of_a_plain_one(dtype, mode):
    layer, x, inputs = make(dtype)
    plain, out = plain_feed_forward(layer, x), layer(x, mode)
    torch.testing.assert_close(out, plain)
    grad = torch.randn_like(plain)
    found, expected = (torch.autograd.grad(y, inputs, grad) for y in (out, plain))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('frozen', ['fc1.weight', 'fc2.weight', 'fc2.bias', 'fc1', 'fc2'])
def test_frozen_parts_get_no_gradients_and_leave_those_of_the_others_alone(frozen):
    layer, x, _ = make(torch.float64)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]
    results = (layer(x, mode=Mode.TRAINING), plain_feed_forward(layer, x))
    for a, b in zip(*(torch.autograd.grad(y.sum(), inputs) for y in results), strict=True):
        torch.testing.assert_close(a, b)


def test_a_frozen_half_has_the_gradient_of_its_input():
    layer, x, _ = make()
    layer.requires_grad_(False)
    results = (layer(x, mode=Mode.TRAINING), plain_feed_forward(layer, x))
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in results))


def test_under_autocast_gradients_are_close_to_the_plain_ones():
    layer, x, inputs = make()
    expected = torch.autograd.grad(plain_feed_forward(layer, x).square().sum(), inputs)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = layer(x, mode=Mode.TRAINING)
    assert out.dtype == torch.bfloat16
    found = torch.autograd.grad(out.float().square().sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).abs().max() <= 0.05 * b.abs().max()


@pytest.mark.parametrize('mode', [Mode.PLAIN, Mode.TRAINING])
def test_it_can_be_differentiated_twice_and_forward(mode):
    layer, x, inputs = make(torch.float64)

    def call(x, *parameters):
        names = [name for name, _ in layer.named_parameters()]
        tensors = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, tensors, (x, mode))

    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_in_float32_it_can_be_differentiated_twice():
    layer, x, _ = make()
    results = []
    for out in (layer(x, mode=Mode.TRAINING), plain_feed_forward(layer, x)):
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), [x, layer.fc2.weight]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_samples_have_gradients_of_their_own():
    layer, x, _ = make()
    tensors = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(tensors, sample):
        return torch.func.functional_call(layer, tensors, (sample[None], True)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(tensors, x.detach())
    for i, sample in enumerate(x.detach()):
        expected = torch.autograd.grad(
            plain_feed_forward(layer, sample).square().sum(), [*layer.parameters()]
        )
        for name, grad in zip(tensors, expected, strict=True):
            torch.testing.assert_close(found[name][i], grad)


def kept_tensors(layer, x, mode):
    """Return where in memory autograd keeps activations as wide as the hidden ones."""
    kept = set()

    def pack(tensor):
        if tensor.numel() == 2 * 7 * 10:
            kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = layer(x, mode)
    assert out.requires_grad
    return kept


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_what_the_activation_gives_is_not_kept_if_it_is_to_be_computed_again(dtype, autocast):
    layer, x, _ = make(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        assert len(kept_tensors(layer, x, mode=Mode.TRAINING)) == 1
        assert len(kept_tensors(layer, x, mode=Mode.PLAIN)) == 2


def test_with_dropout_gradients_agree_with_finite_differences():
    layer, x, _ = make(torch.float64, drop_rate=0.3)

    def call(x):
        torch.manual_seed(1)
        return layer.train()(x, mode=Mode.TRAINING)

    assert torch.autograd.gradcheck(call, x)
    assert (layer(x) == 0).float().mean() > 0.1
    torch.testing.assert_close(layer.eval()(x, mode=Mode.TRAINING), plain_feed_forward(layer, x))


def test_a_hook_on_the_second_layer_fires():
    layer, x, _ = make()
    shapes = []
    layer.fc2.register_forward_hook(lambda fc2, args, out: shapes.append(args[0].shape))
    layer(x, mode=Mode.TRAINING).sum().backward()
    assert shapes == [(2, 7, 10)]


def test_no_tokens_at_all_are_taken():
    layer, _, _ = make()
    x = torch.zeros(0, 7, 6, requires_grad=True)
    layer(x, mode=Mode.TRAINING).sum().backward()
    assert x.grad.shape == x.shape
    assert not any(p.grad.any() for p in layer.parameters())


def test_the_layers_are_those_of_torch():
    layer, _, _ = make()
    assert [*layer.state_dict()] == ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
    assert type(layer.fc1) is type(layer.fc2) is nn.Linear
