"""Linear layers: values and gradients as a convolution, and layers that must be called."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

from contnet_mm.models import linear as module
from contnet_mm.models.linear import (
    apply_linear,
    apply_linear_gelu,
    is_plain,
    linear,
    linear_backward,
)

SHAPES = pytest.mark.parametrize('shape', [(1, 10, 6), (3, 5, 6), (1, 1, 6)], ids=str)


@pytest.fixture
def products(monkeypatch):
    """Which of the two operations ran."""
    seen = []
    for name in ('linear', 'conv2d'):
        original = getattr(F, name)

        def spy(*args, name=name, original=original, **kwargs):
            seen.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(F, name, spy)
    return seen


@pytest.fixture
def any_size(monkeypatch):
    """Let small convolutions run as such."""
    monkeypatch.setattr(module, 'MIN_ELEMENTS', 0)


@SHAPES
@pytest.mark.usefixtures('any_size')
@pytest.mark.parametrize('bias', [True, False])
def test_a_linear_layer_as_convolution_has_its_values_and_gradients(products, shape, bias):
    layer = nn.Linear(6, 4, bias=bias)
    x = torch.randn(*shape, requires_grad=True)
    inputs = [x, *layer.parameters()]
    out = apply_linear(layer, x)
    assert products == ['conv2d']
    plain = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(out, plain)
    grad = torch.randn_like(out)
    found, expected = (torch.autograd.grad(y, inputs, grad) for y in (out, plain))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@SHAPES
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.usefixtures('any_size')
@pytest.mark.parametrize('needed', [(True, True, True), (True, False, False), (False, True, True)])
def test_the_backward_pass_of_a_linear_layer_is_that_of_autograd(shape, dtype, needed):
    x, weight, bias = (
        torch.randn(*size, dtype=dtype, requires_grad=True) for size in (shape, (4, 6), (4,))
    )
    plain = F.linear(x, weight, bias)
    grad = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, [x, weight, bias], grad)
    with torch.no_grad():
        found = linear_backward(grad, x, weight, needed)
    for a, b, is_needed in zip(found, expected, needed, strict=True):
        if is_needed:
            torch.testing.assert_close(a, b)


@pytest.mark.usefixtures('any_size')
def test_a_linear_layer_takes_a_view_that_is_not_contiguous(products):
    layer = nn.Linear(6, 4)
    plain = [layer.weight, layer.bias]
    for x in (torch.randn(6, 10, 2).permute(2, 1, 0), torch.randn(2, 20, 6)[:, ::2]):
        products.clear()
        out = apply_linear(layer, x)
        assert products == ['conv2d']
        torch.testing.assert_close(out, F.linear(x, *plain))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_only_float32_runs_as_a_convolution(products, dtype):
    layer = nn.Linear(6, 4).to(dtype)
    x = torch.randn(2, 5, 6, dtype=dtype)
    out = apply_linear(layer, x)
    assert products == ['linear']
    assert torch.equal(out, F.linear(x, layer.weight, layer.bias))


@pytest.mark.usefixtures('any_size')
def test_under_autocast_a_linear_layer_stays_one(products):
    layer = nn.Linear(6, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert apply_linear(layer, torch.randn(2, 5, 6)).dtype == torch.bfloat16
    with torch.autocast('cpu', enabled=False):
        assert apply_linear(layer, torch.randn(2, 5, 6)).dtype == torch.float32
    assert products == ['linear', 'conv2d']


def test_off_the_cpu_a_linear_layer_stays_one(products):
    layer = nn.Linear(6, 4, device='meta')
    assert apply_linear(layer, torch.empty(2, 5, 6, device='meta')).shape == (2, 5, 4)
    assert products == ['linear']


@pytest.mark.parametrize('shape', [(0, 5, 6), (2, 0, 6)], ids=str)
def test_a_linear_layer_takes_no_tokens_at_all(shape):
    x = torch.zeros(*shape, requires_grad=True)
    layer = nn.Linear(6, 4)
    out = apply_linear(layer, x)
    assert out.shape == (*shape[:-1], 4)
    out.sum().backward()
    assert x.grad.shape == shape and not layer.weight.grad.any()
    grads = linear_backward(out.detach(), x.detach(), layer.weight.detach(), (True,) * 3)
    assert [g.shape for g in grads] == [shape, (4, 6), (4,)]


def test_a_linear_layer_as_convolution_can_be_mapped_over_samples():
    layer, x = nn.Linear(6, 4), torch.randn(3, 2, 5, 6)
    found = torch.func.vmap(lambda x: linear(x, layer.weight, layer.bias))(x)
    torch.testing.assert_close(found, F.linear(x, layer.weight, layer.bias))


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        return 2 * weight


class Shifted(nn.Linear):
    """A layer of a user, such as one of low rank beside frozen weights."""

    def forward(self, x):
        return super().forward(x) + 1


def forward_hook(layer):
    layer.register_forward_hook(lambda layer, args, out: out + 1)
    return layer


def forward_pre_hook(layer):
    layer.register_forward_pre_hook(lambda layer, args: (args[0] + 1,))
    return layer


def replaced_forward(layer):
    original = layer.forward
    layer.forward = lambda x: original(x) + 1
    return layer


def parametrized(layer):
    parametrize.register_parametrization(layer, 'weight', Doubled())
    return layer


def pruned(layer):
    prune.random_unstructured(layer, 'weight', 0.5)
    return layer


def subclass(layer):
    return Shifted(6, 4)


CHANGES = [forward_hook, forward_pre_hook, replaced_forward, parametrized, pruned, subclass]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
def test_a_layer_that_does_more_than_a_product_is_called(change):
    layer, x = change(nn.Linear(6, 4)), torch.randn(2, 5, 6)
    assert not is_plain(layer)
    for _ in range(3):  # a pruned weight is made anew by each call, or it trains only once
        out = apply_linear(layer, x)
        assert torch.equal(out, layer(x))
        out.sum().backward()
    if change in (forward_hook, forward_pre_hook, replaced_forward, subclass):
        assert not torch.allclose(out, F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize('name', ['register_full_backward_hook', 'register_full_backward_pre_hook'])
def test_a_hook_of_the_backward_pass_fires(name):
    layer, fired = nn.Linear(6, 4), []
    getattr(layer, name)(lambda layer, *grads: fired.append(len(grads)))
    apply_linear(layer, torch.randn(2, 5, 6, requires_grad=True)).sum().backward()
    assert len(fired) == 1 and not is_plain(layer)


def test_a_hook_of_all_modules_fires():
    layer, fired = nn.Linear(6, 4), []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: fired.append(1))
    try:
        apply_linear(layer, torch.randn(2, 5, 6))
        assert fired and not is_plain(layer)
    finally:
        handle.remove()
    assert is_plain(layer)


@pytest.mark.filterwarnings('ignore:torch.ao.quantization is deprecated')
def test_a_quantised_layer_is_called():
    if (
        not hasattr(torch.ao, 'quantization')
        or 'fbgemm' not in torch.backends.quantized.supported_engines
    ):
        pytest.skip('this torch cannot quantise')
    model = nn.Sequential(nn.Linear(6, 4))
    layer = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)[0]
    x = torch.randn(2, 5, 6)
    assert torch.equal(apply_linear(layer, x), layer(x))


def test_small_inputs_stay_with_the_linear_layer(products):
    layer = nn.Linear(64, 4)
    for tokens, product in ((320, 'linear'), (321, 'conv2d')):
        products.clear()
        apply_linear(layer, torch.randn(1, tokens, 64))
        assert products == [product]


@pytest.mark.usefixtures('any_size')
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('fuse', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_layer_and_its_gelu_have_the_values_of_one_after_the_other(dtype, fuse, bias):
    layer, x = nn.Linear(6, 4, bias=bias).to(dtype), torch.randn(3, 5, 6, dtype=dtype)
    with torch.no_grad():
        found = apply_linear_gelu(layer, x, fuse)
        torch.testing.assert_close(found, F.gelu(F.linear(x, layer.weight, layer.bias)))


@pytest.mark.usefixtures('any_size')
@pytest.mark.skipif(not module.HAS_FUSED_GELU, reason='this torch has no such operation')
def test_a_layer_and_its_gelu_are_one_operation_unless_a_hook_looks_on(products):
    layer, x = nn.Linear(6, 4), torch.randn(3, 5, 6)
    with torch.no_grad():
        apply_linear_gelu(layer, x, fuse=True)
        assert products == []
        layer.register_forward_hook(lambda *_: None)
        apply_linear_gelu(layer, x, fuse=True)
        assert products == ['linear']
