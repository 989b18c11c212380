"""ConTNet(compile=True): one graph for all image sizes, and everything else as without it."""

import copy
import json
import math
import pickle
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from contnet_mm import ConTNet
from contnet_mm.models import blocks, kernels
from contnet_mm.models.contnet import Stages
from contnet_mm.models.window_layout import HAS_CUSTOM_OPS, Way
from tests.conftest import THIN_ARCH
from tests.helpers import ROOT

# Tracing takes seconds for each block, so most tests build one or two of them.
ARCH = dict(THIN_ARCH, depths=(1, 1, 1, 1))
DROPPING = dict(ARCH, drop_rates=(0.2, 0.2, 0.2, 0.2), last_drop_rate=0.2)
needs_compiler = pytest.mark.skipif(
    not HAS_CUSTOM_OPS, reason='compile=True needs operators that this torch does not have'
)


def compile_quickly(self, **kwargs):
    """What Stages.compile does, with a backend that traces all and generates no code."""
    nn.Module.compile(self, **kwargs, backend='aot_eager_decomp_partition')


@pytest.fixture
def counters(monkeypatch):
    """Counters of the compiler, set to zero."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(Stages, 'compile', compile_quickly)
    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


def build(arch=ARCH, out_indices=(0,), **kwargs):
    """Build a network with weights that matter and count as loaded."""
    net = ConTNet(arch, out_indices=out_indices, **kwargs)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    net.load_state_dict(net.state_dict())
    return net


def build_pair(**kwargs):
    """Build an eager and a compiled network with the same weights."""
    eager, compiled = (build(compile=compile, **kwargs) for compile in (False, True))
    compiled.load_state_dict(eager.state_dict())
    return eager, compiled


def step(net, x):
    """Return the maps, the gradients and the buffers after one pass."""
    net.zero_grad()
    maps = net(x)
    sum(m.float().square().mean() for m in maps).backward()
    grads = [p.grad for p in net.parameters() if p.requires_grad]
    assert all(grad is not None for grad in grads)
    return [*maps, *grads, *(b.clone() for b in net.buffers())]


def assert_same(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max() + 1e-6


@needs_compiler
@pytest.mark.parametrize(
    ('size', 'way'), [((224, 224), Way.FUSED), ((70, 101), Way.OPERATOR)], ids=['whole', 'cut']
)
def test_a_network_that_its_user_compiles_attends_in_one_way(size, way, counters, monkeypatch):
    net, ways = build(out_indices=(1, 3)).eval(), []

    def make(*args):
        ways.append(args[3])
        return window_layout(*args)

    window_layout = blocks.window_layout
    monkeypatch.setattr(blocks, 'window_layout', make)
    compiled = torch.compile(net, backend='aot_eager')
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert_same(compiled(x), net(x), 1e-5)
    stages = len(net.stages)
    assert ways == [way] * stages + [Way.GROUPED] * stages
    assert counters['stats']['unique_graphs'] <= 2


@pytest.mark.skipif(HAS_CUSTOM_OPS, reason='this torch can compile')
def test_a_torch_that_is_too_old_is_named():
    with pytest.raises(ValueError, match='compile=True needs torch 2.4 or newer, this is 2'):
        ConTNet(ARCH, compile=True)


@pytest.mark.parametrize('value', [1, 'yes', None])
def test_compile_is_a_flag(value):
    with pytest.raises(TypeError, match=f'compile must be True or False, got .*{value!r}'):
        ConTNet(ARCH, compile=value)


def sizes(count):
    """Return image sizes from which on torch makes no special cases of small convolutions."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(180, 300, (count, 2), generator=generator).tolist()


@needs_compiler
@pytest.mark.parametrize(
    ('position', 'training'),
    [('absolute', False), pytest.param('relative', True, marks=pytest.mark.slow)],
)
def test_twenty_sizes_share_one_graph_and_other_batches_have_two_more(counters, position, training):
    net = ConTNet('tiny', position=position, out_indices=(0, 1), compile=True).train(training)
    with torch.set_grad_enabled(training):
        for height, width in sizes(20):
            net(torch.randn(2, 3, height, width))
        assert counters['stats']['unique_graphs'] == 1
        for (height, width), batch in zip(sizes(4), [1, 3, 2, 1], strict=True):
            net(torch.randn(batch, 3, height, width))
    assert counters['stats']['unique_graphs'] <= 3


@needs_compiler
@pytest.mark.parametrize(
    'kwargs',
    [
        dict(position='relative', pre_norm=True, avg_down=True, deep_stem=True),
        dict(frozen_stages=1, out_indices=(0, 1)),
        dict(norm_eval=True, position='relative', with_cp=True, frozen_stages=0),
        pytest.param(dict(out_indices=(0, 1, 2, 3)), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_compiled_step_is_an_eager_one(counters, kwargs):
    # In float32 a sum in another order can flip a ReLU near zero.
    eager, compiled = (net.double().train() for net in build_pair(**kwargs))
    for size in [(2, 3, 61, 83), (2, 3, 40, 99)]:
        x = torch.randn(size, dtype=torch.float64)
        assert_same(step(compiled, x), step(eager, x), tolerance=1e-6)
    assert counters['stats']['unique_graphs'] >= 1


@needs_compiler
@pytest.mark.parametrize('position', ['absolute', 'relative'])
def test_compiled_maps_are_the_eager_ones_in_float32(counters, position):
    eager, compiled = (net.eval() for net in build_pair(position=position))
    x = torch.randn(1, 3, 64, 45)
    with torch.inference_mode():
        assert_same(compiled(x), eager(x), tolerance=1e-5)
    assert_same([m.detach() for m in compiled(x)], [m.detach() for m in eager(x)], tolerance=1e-5)


@needs_compiler
def test_a_compiled_network_trains_and_predicts_in_bfloat16(counters):
    eager, compiled = build_pair(position='relative', norm_eval=True)
    x = torch.randn(2, 3, 61, 83)
    # Eager LayerNorm sums the gradients of its parameters in bfloat16 on a CPU, far off the truth.
    expected = step(eager.train(), x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = step(compiled.train(), x)
        assert found[0].dtype == torch.bfloat16
        assert_same(found, expected, tolerance=0.1)
        with torch.no_grad():
            assert_same(compiled.eval()(x), eager.eval()(x), tolerance=0.05)


@needs_compiler
def test_copies_are_compiled_as_well_and_state_dicts_have_the_keys_of_an_eager_network(counters):
    eager, net = (net.eval() for net in build_pair())
    x = torch.randn(1, 3, 40, 50)
    with torch.no_grad():
        expected = net(x)
        assert counters['stats']['unique_graphs'] == 1
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            torch._dynamo.reset()
            counters.clear()
            assert_same(twin(x), expected, tolerance=1e-6)
            assert counters['stats']['unique_graphs'] == 1
            assert list(twin.state_dict()) == list(net.state_dict()) == list(eager.state_dict())
    names, others = ([name for name, _ in each.named_parameters()] for each in (eager, net))
    assert names == others
    eager.load_state_dict(net.state_dict())


def test_an_eager_network_and_its_copies_are_not_compiled():
    net = build()
    for twin in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not twin.stages.compiled and twin.stages._compiled_call_impl is None


def test_a_slice_of_the_stages_is_a_list_of_blocks():
    net = build(out_indices=(3,))
    assert [*net.stages[1:3]] == [net.stages[1], net.stages[2]]
    assert net.stages[-1] is net.stages[3]


def slopes(net, x):
    """Return the slope of the loss along a random way by autograd and by finite differences."""
    parameters = [*net.parameters()]

    def loss():
        torch.manual_seed(1)
        return sum(m.square().mean() for m in net(x))

    grads = torch.autograd.grad(loss(), parameters)
    way = [torch.randn_like(p) for p in parameters]
    values = []
    for distance in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, direction in zip(parameters, way, strict=True):
                parameter += distance * direction
        values.append(loss().detach())
    slope = sum((g * w).sum() for g, w in zip(grads, way, strict=True))
    return slope, (values[0] - values[1]) / 2e-6


@needs_compiler
@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(with_cp=True),
        pytest.param(dict(with_cp=True, out_indices=(3,)), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_dropout_follows_the_seed_and_is_the_same_forward_and_backward(counters, kwargs):
    net = build(DROPPING, position='relative', compile=True, **kwargs).double().train()
    x = torch.randn(2, 3, 61, 83, dtype=torch.float64)
    buffers = len([*net.buffers()])  # statistics, which go on from step to step
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(step(net, x)[: -buffers or None])
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])
    slope, difference = slopes(net, x)
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-8)
    assert counters['stats']['unique_graphs'] == 1


@needs_compiler
def test_generated_code_has_the_maps_of_eager():
    torch._dynamo.reset()
    eager, compiled = (net.eval() for net in build_pair(position='relative'))
    with torch.no_grad():
        for size in [(2, 3, 61, 83), (2, 3, 90, 45)]:
            x = torch.randn(size)
            assert_same(compiled(x), eager(x), tolerance=1e-5)


@needs_compiler
@pytest.mark.parametrize('kwargs', [dict(), dict(with_cp=True, position='relative')], ids=str)
@pytest.mark.slow
def test_generated_code_trains_with_dropout(kwargs):
    torch._dynamo.reset()
    net = build(DROPPING, out_indices=(0, 3), compile=True, **kwargs).double().train()
    slope, difference = slopes(net, torch.randn(2, 3, 61, 83, dtype=torch.float64))
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-8)


def train_together(rank, rendezvous, with_cp):
    """Compare the gradients of one of two processes with those of the whole batch."""
    from torch._dynamo.utils import counters

    Stages.compile = compile_quickly
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=2
    )
    # Large enough for two buckets of gradients, at whose border the compiler splits the graph.
    kwargs = dict(arch='tiny', out_indices=(0, 1), norm_eval=True, with_cp=with_cp)
    eager, compiled = (net.train() for net in build_pair(**kwargs))
    for net in (eager, compiled):
        for parameter in net.parameters():
            parameter.data.mul_(0.2)
    together = DistributedDataParallel(compiled, bucket_cap_mb=1)
    for size in [(61, 83), (70, 45)]:
        x = torch.randn(4, 3, *size)
        compiled.zero_grad()
        sum(m.square().mean() for m in together(x.chunk(2)[rank])).backward()
        found = [p.grad.clone() for p in compiled.parameters()]
        eager.zero_grad()
        sum(m.square().mean() for m in eager(x)).backward()
        assert_same(found, [p.grad for p in eager.parameters()], tolerance=1e-3)
    assert counters['stats']['unique_graphs'] == 1 < counters['aot_autograd']['total']
    torch.distributed.destroy_process_group()


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize('with_cp', [False, True])
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path, with_cp):
    mp.spawn(train_together, (tmp_path / 'rendezvous', with_cp), nprocs=2)


# MMEngine says that mixed precision needs a GPU; its own autocast knows CPUs, too.
TRAIN = """
import runpy, sys
from mmengine.optim.optimizer import amp_optimizer_wrapper
amp_optimizer_wrapper.is_cuda_available = lambda: True
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
from torch._dynamo.utils import counters
print('graphs:', counters['stats']['unique_graphs'])
"""


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize('amp', [[], ['--amp']], ids=['float32', 'amp'])
def test_a_detector_trains_with_a_compiled_backbone(tmp_path, amp):
    from contnet_mm.datasets.demo import DemoOptions, make_demo_data

    pytest.importorskip('mmdet')
    make_demo_data(tmp_path / 'data' / 'demo', DemoOptions(num_train=4, num_val=1))
    config = ROOT / 'configs' / 'demo' / 'retinanet_contnet-ti_fpn_demo.py'
    options = dict(
        **{'model.backbone.compile': True, 'train_cfg.max_epochs': 1, 'train_cfg.val_begin': 9},
        **{'train_dataloader.batch_size': 2, 'train_dataloader.num_workers': 0},
        **{'train_dataloader.persistent_workers': False, 'default_hooks.logger.interval': 1},
    )
    command = [sys.executable, '-c', TRAIN, str(ROOT / 'tools' / 'train.py'), str(config), *amp]
    command += ['--work-dir', 'out', '--cfg-options', *(f'{k}={v}' for k, v in options.items())]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'graphs: 1\n' in result.stdout
    (scalars,) = tmp_path.glob('out/*/vis_data/scalars.json')
    losses = [json.loads(line)['loss'] for line in scalars.read_text().splitlines()]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    saved = torch.load(tmp_path / 'out' / 'epoch_1.pth', weights_only=False)['state_dict']
    keys = {k.removeprefix('backbone.') for k in saved if k.startswith('backbone.')}
    assert keys == set(ConTNet('tiny').state_dict())


@needs_compiler
@pytest.mark.skipif(not kernels.HAS_TRITON, reason='kernels need Triton')
def test_fused_kernels_need_no_graph_for_each_size(counters):
    eager, compiled = build_pair(fused=True)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    eager, compiled = eager.to(device), compiled.to(device)
    for height, width in ((33, 41), (45, 39)):
        x = torch.randn(1, 3, height, width, device=device)
        assert_same(step(compiled, x), step(eager, x), 1e-4)
    assert counters['stats']['unique_graphs'] == 1
