"""Counting operations: small networks, whose counts can be worked out by hand."""

import subprocess
import sys
import types
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from contnet_mm.benchmark import count
from contnet_mm.benchmark.count import (
    COUNTED_NETWORKS,
    WorkCount,
    count_cuda_forward,
    count_in_new_process,
    count_network,
    count_step,
    counting,
    render_head,
    render_row,
)
from contnet_mm.benchmark.plan import Size
from contnet_mm.models.window_attention import HAS_EFFICIENT_ATTENTION
from tests.helpers import ROOT, run_tool

TOOL = ROOT / 'tools' / 'count_operations.py'
SMALL = Size(1, 64, 96)
FLOAT = 4  # bytes

needs_custom_ops = pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op'), reason='torch 2.4 brings custom operators'
)
needs_autocast_switches = pytest.mark.skipif(
    not hasattr(torch, 'get_autocast_dtype'), reason='torch 2.4 names devices of autocast'
)
needs_checkpoint_on_meta = pytest.mark.skipif(
    not hasattr(torch, 'get_autocast_dtype'), reason='torch before 2.4 checkpoints no meta tensors'
)


class Net(nn.Module):
    """Applies a function to parameters of some shapes, and ignores its input."""

    def __init__(self, function, *shapes):
        super().__init__()
        self.function = function
        self.tensors = nn.ParameterList(torch.empty(shape, device='meta') for shape in shapes)

    def forward(self, x):
        return self.function(*self.tensors)


def attend(*tensors, **options):
    return F.scaled_dot_product_attention(*tensors, **options)  # looked up in each call


def count_function(function, *shapes):
    return count_step(Net(function, *shapes), torch.empty(1, device='meta'))


def test_linear_layer_is_one_product_and_then_two_gradients():
    with torch.device('meta'):
        net, x = nn.Linear(3, 5), torch.empty(2, 3)
    forward = 5 + 6 + 15 + 10  # bias, input, weight, output
    backward = (10 + 6 + 15) + (10 + 5)  # a product for the weight, a sum for the bias
    assert count_step(net, x) == WorkCount(1, 2, (forward + backward) * FLOAT)
    half = count_step(net.bfloat16(), x.bfloat16())
    assert half == WorkCount(1, 2, (forward + backward) * FLOAT // 2)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_views_and_allocations_count_nothing():
    def look(x):
        x = x.view(6, 4).t().unflatten(0, (2, 2)).permute(1, 0, 2).unsqueeze(0).expand(1, 2, 2, 6)
        torch.empty_like(x), x.new_empty(3)
        x.detach().squeeze_()
        return x.split(1, dim=1)[0]

    result = count_function(look, (2, 12))
    assert result.forward == 0 and result.backward > 0  # gradients of slices are filled up


def test_product_with_a_batch_of_rows_is_one_operation():
    result = count_function(lambda x, y: x @ y, (2, 3, 4), (4, 5))
    assert (result.forward, result.backward) == (1, 2)


def test_copies_and_changes_in_place_count():
    result = count_function(lambda x: (x * 2).clone().add_(1), (2, 3))
    # In place, the target is read and written. The backward pass is a product.
    assert result == WorkCount(3, 1, 4 * (6 + 6) * FLOAT)


def test_several_maps_are_counted_together():
    net = Net(lambda x, y: (x * 2, y * 3), (4,), (5,))
    assert count_step(net, torch.empty(1, device='meta')) == WorkCount(2, 2, 4 * 9 * FLOAT)


def test_tensors_elsewhere_count_nothing():
    assert count_function(lambda x: x * 2 if torch.ones(3).sum() == 3 else x, (4,)).forward == 1


def test_attention_is_one_operation_in_each_pass():
    q, k = (2, 3, 4, 8), (2, 3, 6, 8)
    result = count_function(attend, q, k, k)
    q, k = 192, 288  # values
    assert result == WorkCount(1, 1, ((q + k + k + q) + (q + q + k + k + q + k + k)) * FLOAT)


def test_attention_mask_is_read_and_may_have_a_gradient():
    shape, mask = (1, 2, 4, 8), (2, 4, 4)
    x, m = 64, 32
    learnt = count_function(attend, shape, shape, shape, mask)
    assert learnt == WorkCount(1, 1, ((4 * x + m) + (7 * x + 2 * m)) * FLOAT)
    fixed = torch.empty(mask, device='meta')
    result = count_function(
        lambda *x: attend(*x, attn_mask=fixed, dropout_p=0.5), shape, shape, shape
    )
    assert result == WorkCount(1, 1, ((4 * x + m) + (7 * x + m)) * FLOAT)


def test_heads_merge_without_a_copy_where_the_queries_were_cut_from_tokens():
    def attend_tokens(qkv):
        heads = qkv.view(2, 4, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind()
        return attend(*heads).transpose(1, 2).reshape(2, 4, 16)

    assert count_function(attend_tokens, (2, 4, 48)).forward == 1


def test_attention_of_wider_values_is_as_wide():
    shapes = (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 16)
    assert count_function(lambda *x: attend(*x).view(1, 2, 4, 16), *shapes).operations == 2


def test_attention_is_replaced_wherever_it_was_imported_and_comes_back(monkeypatch):
    original = F.scaled_dot_product_attention
    module = types.ModuleType('contnet_imports_attention')
    module.attend = original
    monkeypatch.setitem(sys.modules, module.__name__, module)
    shape = (1, 2, 4, 8)
    assert count_function(lambda *x: module.attend(*x), shape, shape, shape).operations == 2
    assert module.attend is F.scaled_dot_product_attention is original

    def fail(*tensors):
        assert F.scaled_dot_product_attention is module.attend is not original
        raise RuntimeError('of the network')

    with pytest.raises(RuntimeError, match='of the network'):
        count_function(fail, shape)
    assert module.attend is F.scaled_dot_product_attention is original
    x = torch.ones(shape)
    with counting('cpu') as counter:
        pass
    assert original(x, x, x).equal(x) and counter.operations == 0


@needs_checkpoint_on_meta
def test_checkpointed_attention_counts_again_in_the_backward_pass():
    def recompute(*x):
        return torch.utils.checkpoint.checkpoint(attend, *x, use_reentrant=False)

    result = count_function(recompute, *[(1, 2, 4, 8)] * 3)
    assert (result.forward, result.backward) == (1, 2)


@pytest.mark.skipif(not HAS_EFFICIENT_ATTENTION, reason='this torch calls it in another way')
def test_kernel_of_torch_with_cumulative_lengths_is_one_operation_in_each_pass():
    lengths = torch.empty(3, dtype=torch.int32, device='meta')

    def efficient(q, k, v):
        kernel = torch.ops.aten._efficient_attention_forward
        return kernel(q, k, v, None, lengths, lengths, 7, 7, 0.0, 0, True)[0]

    result = count_function(efficient, *[(1, 10, 2, 8)] * 3)
    assert (result.forward, result.backward) == (1, 1)


def test_varlen_attention_is_one_operation_and_zeros_for_missing_gradients():
    varlen = pytest.importorskip('torch.nn.attention.varlen')
    lengths = torch.empty(3, dtype=torch.int32, device='meta')
    net = Net(lambda *x: varlen.varlen_attn(*x, lengths, lengths, 7, 7), *[(10, 2, 8)] * 3)
    result = count_step(net.bfloat16(), torch.empty(1, device='meta'))
    assert result.forward == 1 and 1 <= result.backward <= 3  # by version of torch


@needs_custom_ops
def test_operator_of_the_package_counts_as_all_that_it_calls():
    @torch.library.custom_op('contnet_mm::count_test_inner', mutates_args=())
    def inner(x: torch.Tensor) -> torch.Tensor:
        return x + x

    @torch.library.custom_op('contnet_mm::count_test', mutates_args=())
    def outer(x: torch.Tensor) -> torch.Tensor:
        return F.linear(inner(x).t().contiguous().contiguous(), x) + 1

    for op in (inner, outer):
        op.register_fake(lambda x: torch.empty_like(x))
    outer.register_autograd(lambda ctx, grad: inner(grad))
    # Forward: sum, copy, product, sum with a number; in the backward pass a sum.
    assert count_function(outer, (3, 3)) == WorkCount(4, 1, (3 + 2 + 3 + 2 + 3) * 9 * FLOAT)


@needs_custom_ops
def test_operator_of_the_package_counts_as_its_version_for_cuda():
    @torch.library.custom_op('contnet_mm::count_test_cuda', mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x + x + 0

    double.register_kernel('cuda')(lambda x: x * 2)
    double.register_fake(lambda x: torch.empty_like(x))
    double.register_autograd(lambda ctx, grad: grad * 2)
    assert count_function(double, (3,)) == WorkCount(1, 1, 4 * 3 * FLOAT)


@needs_custom_ops
def test_attention_inside_an_operator_of_the_package_is_one_operation():
    @torch.library.custom_op('contnet_mm::count_test_attention', mutates_args=())
    def own_attention(x: torch.Tensor) -> torch.Tensor:
        return attend(x, x, x)

    own_attention.register_fake(lambda x: torch.empty_like(x))
    own_attention.register_autograd(lambda ctx, grad: grad)
    assert count_function(own_attention, (1, 2, 4, 8)).forward == 1


@needs_custom_ops
def test_operator_of_others_is_one_operation():
    @torch.library.custom_op('count_test_other::double', mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x + x + 0

    double.register_fake(lambda x: torch.empty_like(x))
    double.register_autograd(lambda ctx, grad: grad * 2)
    assert count_function(double, (3,)).forward == 1


class Cached(nn.Module):
    """Makes a table for each size, once."""

    def __init__(self):
        super().__init__()
        self.conv, self.tables = nn.Conv2d(3, 1, 1), {}

    def forward(self, x):
        table = self.tables.get(x.shape)
        if table is None:
            table = self.tables[x.shape] = torch.arange(x.shape[-1], device=x.device) + 1
        return self.conv(x) * table


def test_what_a_network_keeps_for_a_size_is_counted_once(monkeypatch):
    monkeypatch.setattr(count, 'build_network', lambda *_: net)
    net = Cached().to('meta')
    result = count_network('resnet50', SMALL)
    # Forward: convolution and product. Backward: product, both gradients of the convolution.
    assert (result.forward, result.backward, result.more_at_new_size) == (2, 2, 2)
    assert count_network('resnet50', SMALL).more_at_new_size == 0
    assert count_network('resnet50', Size(1, 64, 64)).more_at_new_size == 2


@needs_autocast_switches
def test_autocast_casts_each_weight_once_and_leaves_no_trace():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4, device='meta')

        def forward(self, x):
            return self.linear(self.linear(x))

    net, x = Twice(), torch.empty(2, 4, device='meta')
    casts = 3 * 2  # weight, bias and images are read in 4 bytes, written in 2
    values = 16 + 4 + 8
    products = 2 * (4 + 8 + 16 + 8)
    under = count_cuda_forward(net, x, torch.bfloat16)
    assert under == WorkCount(5, None, casts * values + 2 * products)
    assert count_cuda_forward(net, x, torch.bfloat16) == under
    assert count_cuda_forward(net, x) == WorkCount(2, None, FLOAT * products)
    assert not torch.is_autocast_enabled('cuda')
    assert torch.get_autocast_dtype('cuda') == torch.float16
    assert all(parameter.is_meta for parameter in net.parameters())


@needs_autocast_switches
def test_each_pass_under_autocast_casts_weights_anew():
    with FakeTensorMode(), torch.device('cuda'):
        x, weight = torch.empty(2, 4), torch.empty(4, 4, requires_grad=True)
    for _ in range(2):
        with count.cuda_autocast(torch.bfloat16), counting('cuda') as counter:
            F.linear(x, weight)
            F.linear(x, weight)
        assert counter.operations == 2 * 2 + 1


@needs_autocast_switches
def test_attention_under_autocast_reads_what_is_cast():
    net = Net(attend, *[(1, 2, 4, 8)] * 3)
    result = count_cuda_forward(net, torch.empty(1, device='meta'), torch.bfloat16)
    assert result == WorkCount(4, None, 3 * 64 * (4 + 2) + 4 * 64 * 2)


@needs_autocast_switches
def test_autocast_is_off_again_after_an_error():
    def fail(x):
        assert torch.is_autocast_enabled('cuda') and x.is_cuda
        raise RuntimeError('of the network')

    with pytest.raises(RuntimeError, match='of the network'):
        count_cuda_forward(Net(fail, (2,)), torch.empty(1, device='meta'), torch.bfloat16)
    assert not torch.is_autocast_enabled('cuda')
    assert torch.get_autocast_dtype('cuda') == torch.float16
    assert type(torch.empty(1)) is torch.Tensor


QUICK = ('contnet-ti', 'resnet50', 'swin-t', 'convnext-t')
SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in COUNTED_NETWORKS if name not in QUICK
]


@pytest.mark.parametrize('network', [*QUICK, *SLOW])
def test_every_network_is_counted_twice_alike(network):
    first, second = count_network(network, SMALL), count_network(network, SMALL)
    assert second == replace(first, more_at_new_size=0)
    assert 0 < first.forward < first.operations and first.bytes > 0


@needs_autocast_switches
@pytest.mark.parametrize('network', ['resnet50', 'convnext-t'])
def test_a_gpu_is_asked_for_what_the_meta_device_is_asked_for(network):
    setting = count.list_settings(network, timm=False)[0]
    with torch.device('meta'):
        net, x = count.build_network(network, setting, SMALL).train(), torch.empty(1, 3, 64, 96)
    step = count_step(net, x)
    assert count_cuda_forward(net, x).forward == step.forward
    assert count_cuda_forward(net, x, torch.bfloat16).forward > step.forward


def test_weights_in_half_precision_move_about_half_of_the_bytes():
    full, half = (count_network('resnet50', SMALL, d) for d in ('float32', 'bfloat16-pure'))
    assert full.operations == half.operations and 0.5 < half.bytes / full.bytes < 0.51


@pytest.mark.parametrize(
    ('network', 'dtype', 'wrong'),
    [
        ('contnet-m-fused', 'float32', 'contnet-m-fused'),
        ('resnet18', 'float32', 'resnet18'),
        ('resnet50', 'tf32', 'tf32'),
    ],
)
def test_what_cannot_be_counted_is_named(network, dtype, wrong):
    with pytest.raises(ValueError, match=f'{wrong!r} cannot be counted; choose among'):
        count_network(network, SMALL, dtype)


def test_table_shows_both_passes_and_gb():
    row = render_row('resnet50', SMALL, 'float32', WorkCount(3, 4, 2_340_000_000, 5))
    assert row == '| 1x64x96 | float32 | resnet50 | 3 | 4 | 7 | 5 | 2.3 |\n'
    row = render_row('swin-t', SMALL, 'bfloat16', WorkCount(3, None, 1))
    assert row == '| 1x64x96 | bfloat16 | swin-t | 3 | - | 3 | - | 0.0 |\n'
    assert len({line.count('|') for line in [*render_head().splitlines(), row]}) == 1


def test_tool_prints_a_line_for_each_size_dtype_and_network(monkeypatch):
    monkeypatch.setattr(count, 'count_in_new_process', count_network)
    words = ['--networks', 'resnet50', 'contnet-ti', '--sizes', '64x96', '2x64x64', '64x96']
    result = run_tool('count_operations', *words, '--dtypes', 'float32', 'bfloat16-pure')
    lines = result.stdout.splitlines(keepends=True)
    assert ''.join(lines[:2]) == render_head() and len(lines) == 2 + 2 * 2 * 2
    assert lines[2] == render_row('resnet50', SMALL, 'float32', count_network('resnet50', SMALL))


@pytest.mark.parametrize('size', ['multiscale', '31x64'])
def test_tool_refuses_what_is_no_size(size):
    result = run_tool('count_operations', '--sizes', size)
    assert result.returncode == 2 and not result.stdout
    assert f'error: size {size!r}' in result.stderr


@pytest.mark.slow
def test_new_process_has_seen_no_size():
    count_network('contnet-ti', SMALL)
    assert count_network('contnet-ti', SMALL).more_at_new_size == 0
    first, second = (count_in_new_process('contnet-ti', SMALL) for _ in range(2))
    assert first == second and first.more_at_new_size > 0


@pytest.mark.slow
def test_tool_runs_outside_of_the_checkout(tmp_path):
    words = [sys.executable, str(TOOL), '--networks', 'resnet50', '--sizes', '64x96']
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 4 and not [*tmp_path.iterdir()]
