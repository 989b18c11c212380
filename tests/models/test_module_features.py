"""What one may do with any module: copy, average, hook, prune, quantise, run in threads."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from tests.helpers import (
    POSITIONS,
    assert_close,
    build,
    difference,
    gradients,
    loss_of,
)

SIZE = (2, 3, 61, 83)
LINEARS = ['qkv', 'proj', 'fc1', 'fc2']
both_positions = pytest.mark.parametrize('position', POSITIONS)
both_modes = pytest.mark.parametrize('grad', [False, True])
needs_export = pytest.mark.skipif(
    torch.__version__ < '2.5', reason='torch.export is whole from torch 2.5 on'
)


def linears(net):
    """Return the linear layers by name; a subclass would not be one to most of PyTorch's tools."""
    return {name: m for name, m in net.named_modules() if isinstance(m, nn.Linear)}


def first(net, name):
    """Return the first linear layer of that name."""
    return next(m for full, m in linears(net).items() if full.endswith(f'.{name}'))


def callable_modules(net):
    """Return all modules by name but lists, which have no forward of their own to call."""
    return {name: m for name, m in net.named_modules() if type(m).forward is not nn.Module.forward}


def train(net, steps=3, lr=1e-2):
    """Take a few steps; return the losses."""
    optimizer, losses = torch.optim.SGD(net.parameters(), lr), []
    x = torch.randn(SIZE)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(net.train()(x))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    net.eval()
    return losses


# Copies ------------------------------------------------------------------------------------------


@both_positions
@pytest.mark.parametrize(
    'copied', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=['copy', 'pickle']
)
def test_a_copy_of_a_trained_network_has_its_maps_and_tensors_of_its_own(
    thin_arch, position, copied
):
    net, x = build(thin_arch, position=position), torch.randn(SIZE)
    train(net, steps=1)  # whatever a network keeps of a pass is there now
    twin, expected = copied(net), net(x)
    assert all(torch.equal(a, b) for a, b in zip(twin(x), expected, strict=True))
    train(twin, steps=1)
    assert all(torch.equal(a, b) for a, b in zip(net(x), expected, strict=True))
    assert max(difference(a, b) for a, b in zip(twin(x), expected, strict=True)) > 1e-4


@both_positions
@pytest.mark.parametrize(
    'make',
    [
        lambda net: ExponentialMovingAverage(net, momentum=0.25),
        lambda net: AveragedModel(net, avg_fn=lambda old, new, _: 0.75 * old + 0.25 * new),
    ],
    ids=['mmengine', 'torch'],
)
def test_a_moving_average_follows_the_network(thin_arch, position, make):
    net, x = build(thin_arch, position=position), torch.randn(SIZE)
    average = make(net)
    average.update_parameters(net)  # the first update copies
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    train(net, steps=2)
    average.update_parameters(net)
    expected = copy.deepcopy(net)
    for name, parameter in expected.named_parameters():
        parameter.data = 0.75 * before[name] + 0.25 * parameter.data
    for name, buffer in average.module.named_buffers():
        expected.get_buffer(name).copy_(buffer)
    assert_close(average.module.eval()(x), expected(x))
    assert average.module.state_dict().keys() == net.state_dict().keys()


# Hooks -------------------------------------------------------------------------------------------


@both_positions
@both_modes
def test_forward_hooks_of_every_module_fire(thin_arch, position, grad):
    net, before, after = build(thin_arch, position=position), set(), set()
    x, modules = torch.randn(SIZE), callable_modules(net)
    expected = net(x)
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda *_, name=name: before.add(name))
        module.register_forward_hook(lambda *_, name=name: after.add(name))
    with torch.set_grad_enabled(grad):
        assert_close(net(x), expected)
    assert before == after == {*modules}
    assert {*linears(net)} <= after and len(linears(net)) == 48


@both_positions
def test_backward_hooks_of_every_module_fire(thin_arch, position):
    net, before, after = build(thin_arch, position=position), set(), set()
    x, modules = torch.randn(SIZE), callable_modules(net)
    expected = gradients(net, x)
    for name, module in modules.items():
        module.register_full_backward_pre_hook(lambda *_, name=name: before.add(name))
        module.register_full_backward_hook(lambda *_, name=name: after.add(name))
    # Without a gradient of the image those of the stem and the whole network have nothing to see.
    loss_of(net(x.requires_grad_())).backward()
    assert_close([p.grad for p in net.parameters()], expected, 1e-4)
    assert before == after == {*modules}


@both_modes
@pytest.mark.parametrize('name', LINEARS)
def test_what_a_hook_of_a_linear_layer_returns_is_what_is_used(thin_arch, name, grad):
    net, x = build(thin_arch), torch.randn(SIZE)
    expected = copy.deepcopy(net)
    for parameter in first(expected, name).parameters():
        parameter.data *= 2
    first(net, name).register_forward_hook(lambda module, args, output: 2 * output)
    with torch.set_grad_enabled(grad):
        assert_close(net(x), expected(x))


@both_modes
@pytest.mark.parametrize('name', LINEARS)
def test_what_a_hook_before_a_linear_layer_returns_is_what_is_used(thin_arch, name, grad):
    net, x = build(thin_arch), torch.randn(SIZE)
    expected = copy.deepcopy(net)
    first(expected, name).weight.data *= 2
    first(net, name).register_forward_pre_hook(lambda module, args: 2 * args[0])
    with torch.set_grad_enabled(grad):
        assert_close(net(x), expected(x))


@pytest.mark.parametrize('name', LINEARS)
def test_what_a_backward_hook_of_a_linear_layer_returns_is_what_is_used(thin_arch, name):
    net, x = build(thin_arch), torch.randn(SIZE)
    layer, names = first(net, name), [name for name, _ in net.named_parameters()]
    expected = dict(zip(names, gradients(net, x), strict=True))
    layer.register_full_backward_hook(lambda module, grads, _: (0 * grads[0],))
    found = dict(zip(names, gradients(net, x), strict=True))
    # The layer's own gradient stays, that of the stem, which is before it, does not.
    (key,) = (key for key, p in net.named_parameters() if p is layer.weight)
    assert difference(found[key], expected[key]) <= 1e-4
    assert difference(found['stem.conv.weight'], expected['stem.conv.weight']) > 1e-4


@both_modes
def test_hooks_of_all_modules_fire_for_linear_layers(thin_arch, grad):
    net, forward, backward = build(thin_arch), set(), set()
    handles = [
        global_hooks.register_module_forward_hook(lambda module, *_: forward.add(module)),
        global_hooks.register_module_full_backward_hook(lambda module, *_: backward.add(module)),
    ]
    try:
        with torch.set_grad_enabled(grad):
            maps = net(torch.randn(SIZE))
        if grad:
            loss_of(maps).backward()
    finally:
        for handle in handles:
            handle.remove()
    assert {*linears(net).values()} <= forward
    assert not grad or {*linears(net).values()} <= backward


# Other weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', LINEARS)
def test_a_pruned_layer_trains_and_its_pruned_weights_stay_zero(thin_arch, name):
    net, x = build(thin_arch), torch.randn(SIZE)
    layer = first(net, name)
    prune.l1_unstructured(layer, 'weight', amount=0.5)
    start, kept = layer.weight_orig.detach().clone(), layer.weight_mask.bool()
    assert 0.4 < kept.float().mean() < 0.6
    assert len(train(net, steps=3)) == 3
    moved = layer.weight_orig != start
    assert not moved[~kept].any() and moved[kept].float().mean() > 0.9
    maps = {}
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            maps[grad] = net(x)
    prune.remove(layer, 'weight')  # for good: an ordinary layer, many of whose weights are zero
    assert torch.equal(layer.weight == 0, ~kept)
    for found in maps.values():
        assert_close(found, net(x))


@pytest.mark.parametrize('name', LINEARS)
@pytest.mark.parametrize('kind', ['weight_norm', 'spectral_norm'])
def test_a_layer_with_a_parametrised_weight_uses_and_trains_it(thin_arch, kind, name):
    net, x = build(thin_arch), torch.randn(SIZE)
    layer = first(net, name)
    getattr(parametrizations, kind)(layer)
    start = [p.detach().clone() for p in layer.parameters()]
    train(net)
    assert all((p != q).any() for p, q in zip(layer.parameters(), start, strict=True))
    twin = build(thin_arch)
    weights = {k: v for k, v in net.state_dict().items() if '.parametrizations.' not in k}
    (key,) = (k for k, m in net.named_modules() if m is layer)
    twin.load_state_dict(weights | {f'{key}.weight': layer.weight.detach()})
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert_close(net(x), twin(x))


def test_every_linear_layer_of_cont_ti_is_one_to_pytorch():
    found = linears(build('tiny'))
    assert len(found) == 32
    assert {type(m) for m in found.values()} == {nn.Linear}


@both_positions
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_all_linear_layers_of_cont_ti_can_be_quantised(position):
    net, x = build('tiny', position=position), torch.randn(1, 3, 100, 165)
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    kind = torch.ao.nn.quantized.dynamic.Linear
    assert sum(isinstance(m, kind) for m in quantised.modules()) == 32
    assert not linears(quantised)
    with torch.no_grad():
        maps, expected = quantised(x), net(x)
    assert_close(maps, expected, 0.02)
    assert max(difference(a, b) for a, b in zip(maps, expected, strict=True)) > 1e-5


# Where it runs -----------------------------------------------------------------------------------


def test_data_parallel_without_a_gpu_is_the_network(thin_arch, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    net, x = build(thin_arch), torch.randn(SIZE)
    parallel = nn.DataParallel(net)
    assert all(torch.equal(a, b) for a, b in zip(parallel(x), net(x), strict=True))
    loss_of(parallel(x)).backward()
    assert all(p.grad is not None for p in net.parameters())


@both_positions
@pytest.mark.parametrize('backward', [False, True])
def test_eight_threads_at_once_give_what_they_give_one_by_one(thin_arch, position, backward):
    net = build(thin_arch, position=position)
    # Two of each size, so that some of them meet in whatever is kept by size.
    images = [torch.randn(1, 3, 40 + 23 * (i // 2), 135 - 17 * (i // 2)) for i in range(8)]
    barrier = threading.Barrier(8)

    def run(x):
        if backward:
            return gradients(net, x)
        with torch.no_grad():
            return net(x)

    def run_together(x):
        barrier.wait(60)
        return [run(x) for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        together = [*pool.map(run_together, images)]
    for found, x in zip(together, images, strict=True):
        expected = run(x)
        for result in found:
            assert_close(result, expected, 1e-4 if backward else 1e-6)


def in_inference_mode(net, x):
    with torch.inference_mode():
        net(x)


def in_no_grad(net, x):
    with torch.no_grad():
        net(x)


def traced(net, x):
    with torch.no_grad():
        torch.jit.trace(net, x)


def exported(net, x):
    torch.export.export(net, (x,))


def mapped(net, x):
    torch.vmap(lambda image: net(image[None]))(x)


def differentiated(net, x):
    torch.func.grad(lambda x: loss_of(net(x)))(x)


def forward_mode(net, x):
    torch.func.jvp(net, (x,), (torch.ones_like(x),))


def on_meta(net, x):
    copy.deepcopy(net).to('meta')(x.to('meta'))


def with_fake_tensors(net, x):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        net(torch.empty(x.shape, dtype=x.dtype))


# Whatever is kept by the size of an image must be of use to all that come after.
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@both_positions
@pytest.mark.parametrize(
    ('number', 'before'),
    [
        (0, in_inference_mode),
        (1, in_no_grad),
        (2, traced),
        pytest.param(3, exported, marks=needs_export),
        (4, mapped),
        (5, differentiated),
        (6, forward_mode),
        (7, on_meta),
        (8, with_fake_tensors),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_a_network_trains_at_a_size_first_seen_otherwise(thin_arch, position, number, before):
    # In float32 a sum in another order can flip a ReLU near zero.
    net = build(thin_arch, position=position).double()
    height, width = 70 + 4 * number, 200 + 4 * POSITIONS.index(position)  # no other test's size
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    before(net, x)
    found = gradients(net.train(), x)
    expected = gradients(net, x.flip(0))  # the loss does not see the order of a batch
    assert_close(found, expected, 1e-6)
    net.eval()
    with torch.no_grad():
        inferred = net(x)
    assert_close(inferred, net(x), 1e-9)
