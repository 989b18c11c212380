"""What other people's tools do with a network: one test for each."""

import copy
import importlib.util
import io
import pickle
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations, prune

from contnet_mm import ConTNet
from contnet_mm.apis.complexity import count, count_config
from contnet_mm.apis.config import read_config
from contnet_mm.datasets.demo import DemoOptions, make_demo_data
from tests.helpers import POSITIONS, ROOT, assert_close, build, gradients, loss_of

both_positions = pytest.mark.parametrize('position', POSITIONS)
both_modes = pytest.mark.parametrize('with_grad', [False, True])
needs_export = pytest.mark.skipif(torch.__version__ < '2.5', reason='torch.export came to be whole')
SIZE = (61, 83)


def images(batch=2, dtype=torch.float64):
    return torch.randn(batch, 3, *SIZE, dtype=dtype)


@pytest.fixture
def net(thin_arch, position):
    """A network in double precision, in which a sum in another order flips no ReLU."""
    return build(dict(thin_arch, depths=(1, 1, 1, 1)), position=position).double()


def as_function(net):
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    return lambda parameters, x: functional_call(net, parameters, (x,)), parameters


def slope(function, at, along, step=1e-6):
    """Return the central differences of a function that returns several tensors."""
    pairs = zip(function(at + step * along), function(at - step * along), strict=True)
    return [(a - b) / (2 * step) for a, b in pairs]


# Copies -------------------------------------------------------------------------------------------


@both_positions
@pytest.mark.parametrize(
    'copied', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=['copy', 'pickle']
)
def test_a_copy_has_the_maps_and_tensors_of_its_own(net, copied):
    x, twin = images(), copied(net)
    before = net(x)
    assert all(torch.equal(a, b) for a, b in zip(twin(x), before, strict=True))
    for parameter in twin.parameters():
        parameter.data.add_(0.1)
    assert all(torch.equal(a, b) for a, b in zip(net(x), before, strict=True))


@pytest.mark.parametrize('position', ['absolute'])
def test_a_moving_average_follows_the_network(net):
    average = ExponentialMovingAverage(net, momentum=0.25)
    average.update_parameters(net)  # the first update copies
    expected = copy.deepcopy(net)
    for parameter, mean in zip(net.parameters(), expected.parameters(), strict=True):
        parameter.data.add_(0.4)
        mean.data.add_(0.1)
    average.update_parameters(net)
    x = images()
    assert_close(average.module.eval()(x), expected(x), 1e-9)


# Hooks and other weights --------------------------------------------------------------------------


@both_positions
def test_hooks_of_every_module_fire_in_both_passes(net):
    fired = {name: set() for name in ('before', 'after', 'backward')}
    modules = {
        name: m for name, m in net.named_modules() if type(m).forward is not nn.Module.forward
    }
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda *_, name=name: fired['before'].add(name))
        module.register_forward_hook(lambda *_, name=name: fired['after'].add(name))
        module.register_full_backward_hook(lambda *_, name=name: fired['backward'].add(name))
    loss_of(net.train()(images().requires_grad_())).backward()
    assert len([name for name in modules if name.endswith(('qkv', 'proj', 'fc1', 'fc2'))]) == 32
    assert all(names == {*modules} for names in fired.values())


@both_modes
@pytest.mark.parametrize('position', ['absolute'])
@pytest.mark.parametrize('name', ['attn.qkv', 'attn.proj', 'ffn.fc1', 'ffn.fc2'])
def test_what_a_hook_of_a_linear_layer_returns_is_used(net, name, with_grad):
    expected, layer = copy.deepcopy(net), f'stages.0.0.encoders.0.{name}'
    for parameter in expected.get_submodule(layer).parameters():
        parameter.data *= 2
    net.get_submodule(layer).register_forward_hook(lambda module, args, output: 2 * output)
    x = images()
    with torch.set_grad_enabled(with_grad):
        assert_close(net(x), expected(x), 1e-9)


@pytest.mark.parametrize('position', ['absolute'])
def test_pruned_and_parametrised_layers_train_and_are_used(net):
    ffn = net.stages[0][0].encoders[0].ffn
    prune.l1_unstructured(ffn.fc1, 'weight', amount=0.5)
    parametrizations.weight_norm(ffn.fc2)
    loss_of(net.train()(images())).backward()
    grad, mask = ffn.fc1.weight_orig.grad, ffn.fc1.weight_mask.bool()
    assert 0.4 < mask.double().mean() < 0.6
    assert not grad[~mask].any() and grad[mask].all()
    assert all(p.grad.any() for p in ffn.fc2.parameters())
    with torch.no_grad():
        x = images()
        before = net.eval()(x)
        prune.remove(ffn.fc1, 'weight')
        nn.utils.parametrize.remove_parametrizations(ffn.fc2, 'weight')
        assert_close(net(x), before, 1e-9)


@both_positions
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_all_linear_layers_of_cont_ti_can_be_quantised(position):
    net, x = build('tiny', position=position), torch.randn(1, 3, 100, 165)
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    kind = torch.ao.nn.quantized.dynamic.Linear
    assert sum(isinstance(m, kind) for m in quantised.modules()) == 32
    with torch.no_grad():
        assert_close(quantised(x), net(x), 0.03)


# Derivatives of any order and kind ----------------------------------------------------------------


@both_positions
def test_a_penalty_on_the_gradient_of_the_image_trains_every_parameter(net):
    x = images().requires_grad_()
    (image_grad,) = torch.autograd.grad(loss_of(net.train()(x)), x, create_graph=True)
    image_grad.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@both_positions
@pytest.mark.parametrize('training', [False, True])
def test_second_derivatives_are_those_of_finite_differences(net, training):
    net.train(training)
    x, along = images(), images()

    def gradient_along(numbers):
        """Return the derivative of a loss along a line of images, at a place on it."""
        maps = net(x + numbers * along)
        return torch.stack([m.square().mean() for m in maps])

    numbers = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(gradient_along, numbers)


@both_positions
def test_gradients_of_each_image_at_once_are_those_of_a_loop(net):
    x, (function, parameters) = images(), as_function(net)
    at_once = vmap(grad(lambda p, image: loss_of(function(p, image[None]))), in_dims=(None, 0))
    found = at_once(parameters, x)
    for i in range(2):
        assert_close([g[i] for g in found.values()], gradients(net, x[i : i + 1]), 1e-9)


@both_modes
@both_positions
@pytest.mark.filterwarnings('ignore:There is a performance drop')
def test_vmap_over_networks_is_an_ensemble(net, with_grad):
    nets, x = [net, copy.deepcopy(net)], images()
    for parameter in nets[1].parameters():
        parameter.data *= 1.1
    with torch.set_grad_enabled(with_grad):
        ensemble = vmap(lambda *state: functional_call(net, state, (x,)))
        found = ensemble(*stack_module_state(nets))
        for i in range(2):
            assert_close([m[i] for m in found], nets[i](x), 1e-9)


@both_positions
def test_forward_mode_is_the_slope_along_the_image(net):
    x, along = images(), images()
    expected = slope(net, x, along)
    assert_close(jvp(net, (x,), (along,))[1], expected, 1e-6)
    with forward_ad.dual_level():
        maps = net(forward_ad.make_dual(x, along))
        assert_close([forward_ad.unpack_dual(m).tangent for m in maps], expected, 1e-6)


@both_positions
def test_a_hessian_vector_product_is_the_slope_of_the_gradient(net):
    x, (function, parameters) = images(1), as_function(net)
    key = 'stages.1.0.encoders.0.attn.qkv.weight'
    along = torch.randn_like(parameters[key])

    def gradient(weight):
        loss = grad(lambda weight: loss_of(function({**parameters, key: weight}, x)))
        return (loss(weight),)

    found = jvp(gradient, (parameters[key],), (along,))[1]
    assert_close(found, slope(gradient, parameters[key], along), 1e-5)


# Programs -----------------------------------------------------------------------------------------


@both_modes
@both_positions
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_a_saved_trace_has_the_maps_of_the_network(net, with_grad):
    file, x = io.BytesIO(), images()
    with torch.set_grad_enabled(with_grad):
        torch.jit.save(torch.jit.trace(net, images()), file)
        file.seek(0)
        assert_close(torch.jit.load(file)(x), net(x), 1e-9)


@pytest.mark.parametrize(('position', 'training'), [('absolute', True), ('relative', False)])
@pytest.mark.skipif(torch.__version__ < '2.4', reason='torch before 2.4 traces for minutes')
def test_torch_compile_makes_one_graph_without_a_break(net, training):
    net.train(training)
    x, twin = images(), copy.deepcopy(net)
    compiled = torch.compile(twin, backend='aot_eager', fullgraph=True)
    maps, expected = compiled(x), net(x)
    assert_close(maps, expected, 1e-9)
    found = torch.autograd.grad(loss_of(maps), [*twin.parameters()])
    wanted = torch.autograd.grad(loss_of(expected), [*net.parameters()])
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 1e-9 * max(b.abs().max(), 1e-3)


@needs_export
@both_positions
def test_an_exported_program_does_not_grow_with_the_image(net):
    nodes = []
    for height, width in ((100, 165), (260, 389)):
        x = torch.randn(1, 3, height, width, dtype=torch.float64)
        program = torch.export.export(net, (x,))
        assert_close(program.module()(x), net(x), 1e-9)
        nodes.append(len(program.graph.nodes))
    assert nodes[0] == nodes[1]


@needs_export
@both_positions
@pytest.mark.filterwarnings('ignore:.*LeafSpec.*:FutureWarning')
def test_onnxruntime_gives_the_maps_of_an_odd_size(net, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    net, x = net.float(), torch.randn(2, 3, 100, 165)
    program = torch.onnx.export(net, (torch.randn_like(x),), dynamo=True, verbose=False)
    program.save(tmp_path / 'net.onnx')
    session = onnxruntime.InferenceSession(
        tmp_path / 'net.onnx', providers=['CPUExecutionProvider']
    )
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert_close([torch.from_numpy(m) for m in found], net(x), 1e-4)


@pytest.mark.parametrize('size', [(224, 224), (100, 165)], ids=str)
def test_counters_that_trace_count_attention_and_padding(size):
    """Those of all three libraries' get_flops.py are MMEngine's; they count norms as well."""
    net, x = ConTNet('tiny', out_indices=(3,)).eval(), torch.zeros(1, 3, *size)
    traced = get_model_complexity_info(net, inputs=x, show_table=False, show_arch=False)
    counted = count(net, x)
    total = counted.conv_linear_macs + counted.attention_macs
    assert traced['flops'] == pytest.approx(total, rel=0.01)
    if size == (224, 224):
        assert total == pytest.approx(1.00e9, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('library', 'config', 'options'),
    [
        ('mmdet', 'demo/retinanet_contnet-ti_fpn_demo', ['--num-images', '1']),
        ('mmseg', 'demo/pspnet_contnet-ti-d8_demo-cityscapes', ['--shape', '112']),
        ('mmpretrain', 'contnet/contnet-ti_8xb32_in1k', ['--shape', '100', '165']),
    ],
)
def test_get_flops_of_each_library_counts_what_our_table_says(library, config, options, tmp_path):
    make_demo_data(tmp_path / 'data' / 'demo', DemoOptions(num_train=2, num_val=1))
    path = ROOT / 'configs' / f'{config}.py'
    package = Path(importlib.util.find_spec(library).origin).parent
    script = package / '.mim' / 'tools' / 'analysis_tools' / 'get_flops.py'
    command = [sys.executable, script, path, *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    shape = re.search(r'^Input shape: \(([\d, ]+)\)$', result.stdout, re.MULTILINE)[1]
    number, unit = re.search(r'^Flops: ([\d.]+)([MG])$', result.stdout, re.MULTILINE).groups()
    counted = count_config(read_config(path), tuple(map(int, shape.split(', ')))[-2:])
    total = counted.conv_linear_macs + counted.attention_macs
    assert float(number) * {'M': 1e6, 'G': 1e9}[unit] == pytest.approx(total, rel=0.01)


# Where it runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize('position', ['absolute'])
def test_data_parallel_without_a_gpu_is_the_network(net, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    parallel, x = nn.DataParallel(net), images()
    assert all(torch.equal(a, b) for a, b in zip(parallel(x), net(x), strict=True))


@both_positions
@both_modes
def test_eight_threads_at_once_give_what_they_give_one_by_one(net, with_grad):
    inputs = [torch.randn(1, 3, 40 + 23 * i, 135 - 17 * i).double() for i in range(4)] * 2
    barrier = threading.Barrier(8)

    def run(x):
        if with_grad:
            return gradients(net.train(), x.expand(2, -1, -1, -1))
        with torch.no_grad():
            return net(x)

    def run_together(x):
        barrier.wait(60)
        return [run(x) for _ in range(3)]

    if with_grad:  # running statistics are no matter of the result
        net.train()
    with ThreadPoolExecutor(8) as pool:
        together = [*pool.map(run_together, inputs)]
    for found, x in zip(together, inputs, strict=True):
        for result in found:
            for a, b in zip(result, run(x), strict=True):
                assert (a - b).abs().max() <= 1e-8 * max(b.abs().max(), 1e-3)
