"""Counting operations: small networks, whose counts can be worked out by hand."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from contnet_mm.benchmark import count
from contnet_mm.benchmark.count import (
    WorkCount,
    count_cuda_forward,
    count_network,
    count_step,
    render_head,
    render_row,
)
from contnet_mm.benchmark.plan import Size
from tests.helpers import ROOT, run_tool

SMALL = Size(1, 64, 96)
FLOAT = 4  # bytes

needs_torch_2_4 = pytest.mark.skipif(
    not hasattr(torch, 'get_autocast_dtype'),
    reason='torch before 2.4 names no devices of autocast and checkpoints no meta tensors',
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
    assert count_step(net, x) == WorkCount(1, 2, (forward + backward) * FLOAT, kept=0)
    half = count_step(net.bfloat16(), x.bfloat16())
    assert half == WorkCount(1, 2, (forward + backward) * FLOAT // 2, kept=0)
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
    assert result == WorkCount(3, 1, 4 * (6 + 6) * FLOAT, kept=0)


def test_several_maps_are_counted_together():
    result = count_function(lambda x, y: (x * 2, y * 3), (4,), (5,))
    assert result == WorkCount(2, 2, 4 * 9 * FLOAT, kept=0)


def test_tensors_elsewhere_count_nothing():
    assert count_function(lambda x: x * 2 if torch.ones(3).sum() == 3 else x, (4,)).forward == 1


@pytest.mark.parametrize(
    ('function', 'kept'),
    [
        (lambda x: x.t().sin(), 0),  # a view of a parameter
        (lambda x: (x * 2).t().sin(), 6),  # an argument
        (lambda x: x.exp(), 6),  # a result, which is returned as well
        (lambda x: (x.exp() * 2) * 3, 6),
        (lambda x: [y := x.exp(), y.relu(), y.view(6).sin()], 2 * 6),  # each storage once
    ],
)
def test_what_the_backward_pass_needs_is_kept(function, kept):
    assert count_function(function, (2, 3)).kept == kept * FLOAT


@needs_torch_2_4
def test_what_is_recomputed_is_not_kept_and_counts_again():
    def recompute(x):
        return torch.utils.checkpoint.checkpoint(lambda y: y.exp() * 2, x * 2, use_reentrant=False)

    result = count_function(recompute, (2, 3))
    assert (result.forward, result.backward, result.kept) == (3, 1 + 3, 6 * FLOAT)


def test_attention_is_one_operation_in_each_pass():
    q, k = (2, 3, 4, 8), (2, 3, 6, 8)
    result = count_function(attend, q, k, k)
    q, k = 192, 288  # values
    forward, backward = q + k + k + q, q + q + k + k + q + k + k
    assert result == WorkCount(1, 1, (forward + backward) * FLOAT, kept=0)


def test_attention_mask_is_read_and_may_have_a_gradient():
    shape, mask = (1, 2, 4, 8), (2, 4, 4)
    x, m = 64, 32
    learnt = count_function(attend, shape, shape, shape, mask)
    assert learnt.bytes == ((4 * x + m) + (7 * x + 2 * m)) * FLOAT
    fixed = torch.empty(mask, device='meta')
    result = count_function(
        lambda *x: attend(*x, attn_mask=fixed, dropout_p=0.5), shape, shape, shape
    )
    assert result.bytes == ((4 * x + m) + (7 * x + m)) * FLOAT


def test_heads_merge_without_a_copy_where_the_queries_were_cut_from_tokens():
    def attend_tokens(qkv):
        heads = qkv.view(2, 4, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind()
        return attend(*heads).transpose(1, 2).reshape(2, 4, 16)

    assert count_function(attend_tokens, (2, 4, 48)).forward == 1


def test_attention_comes_back_after_an_error():
    original = F.scaled_dot_product_attention

    def fail(x):
        assert F.scaled_dot_product_attention is not original
        raise RuntimeError('of the network')

    with pytest.raises(RuntimeError, match='of the network'):
        count_function(fail, (2,))
    assert F.scaled_dot_product_attention is original


@needs_torch_2_4
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
    assert under == WorkCount(5, None, casts * values + 2 * products, kept=2 * (values + 8))
    assert count_cuda_forward(net, x, torch.bfloat16) == under
    assert count_cuda_forward(net, x) == WorkCount(2, None, FLOAT * products, kept=FLOAT * 8)
    assert all(parameter.is_meta for parameter in net.parameters())


@needs_torch_2_4
def test_attention_under_autocast_reads_what_is_cast():
    net = Net(attend, *[(1, 2, 4, 8)] * 3)
    result = count_cuda_forward(net, torch.empty(1, device='meta'), torch.bfloat16)
    assert (result.forward, result.bytes) == (4, 3 * 64 * (4 + 2) + 4 * 64 * 2)


@needs_torch_2_4
def test_autocast_is_off_again_after_an_error():
    def fail(x):
        assert torch.is_autocast_enabled('cuda') and x.is_cuda
        raise RuntimeError('of the network')

    with pytest.raises(RuntimeError, match='of the network'):
        count_cuda_forward(Net(fail, (2,)), torch.empty(1, device='meta'), torch.bfloat16)
    assert not torch.is_autocast_enabled('cuda')
    assert torch.get_autocast_dtype('cuda') == torch.float16
    assert type(torch.empty(1)) is torch.Tensor


OURS = [pytest.param(name, marks=needs_torch_2_4) for name in ('contnet-ti', 'contnet-m-cp')]


@pytest.mark.parametrize('network', [*OURS, 'resnet50', 'swin-t', 'convnext-t'])
def test_a_network_is_counted_twice_alike(network):
    first, second = count_network(network, SMALL), count_network(network, SMALL)
    assert first == second
    assert 0 < first.forward < first.operations and 0 < first.kept < first.bytes


@needs_torch_2_4
@pytest.mark.parametrize('network', ['resnet50', 'convnext-t'])
def test_a_gpu_is_asked_for_what_the_meta_device_is_asked_for(network):
    setting = count.list_settings(network, timm=False)[0]
    with torch.device('meta'):
        net, x = count.build_network(network, setting, SMALL).train(), torch.empty(1, 3, 64, 96)
    step, forward = count_step(net, x), count_cuda_forward(net, x)
    assert (forward.forward, forward.kept) == (step.forward, step.kept)
    assert count_cuda_forward(net, x, torch.bfloat16).forward > step.forward


def test_resnet50_keeps_3_64_gb_at_the_size_of_coco():
    assert round(count_network('resnet50', Size(2, 800, 1333)).kept / 1e9, 2) == 3.64


def test_weights_in_half_precision_move_about_half_of_the_bytes():
    full, half = (count_network('resnet50', SMALL, d) for d in ('float32', 'bfloat16-pure'))
    assert full.operations == half.operations and 0.5 < half.bytes / full.bytes < 0.51


def test_a_dtype_that_cannot_be_counted_is_named():
    with pytest.raises(ValueError, match="dtype 'tf32' cannot be counted; choose among"):
        count_network('resnet50', SMALL, 'tf32')


def test_table_shows_both_passes_and_gb():
    row = render_row('resnet50', SMALL, 'float32', WorkCount(3, 4, 2_340_000_000, 567_800_000))
    assert row == '| 1x64x96 | float32 | resnet50 | 3 | 4 | 7 | 2.3 | 0.57 |\n'
    row = render_row('swin-t', SMALL, 'bfloat16', WorkCount(3, None, 1, 0))
    assert row == '| 1x64x96 | bfloat16 | swin-t | 3 | - | 3 | 0.0 | 0.00 |\n'
    assert len({line.count('|') for line in [*render_head().splitlines(), row]}) == 1


def test_tool_prints_a_line_for_each_size_dtype_and_network():
    words = ['--networks', 'resnet50', 'swin-t', '--sizes', '64x96', '2x64x64', '64x96']
    result = run_tool('count_operations', *words, '--dtypes', 'float32', 'bfloat16-pure')
    lines = result.stdout.splitlines(keepends=True)
    assert ''.join(lines[:2]) == render_head() and len(lines) == 2 + 2 * 2 * 2
    assert lines[2] == render_row('resnet50', SMALL, 'float32', count_network('resnet50', SMALL))


def test_tool_refuses_what_is_no_size():
    result = run_tool('count_operations', '--sizes', '31x64')
    assert result.returncode == 2 and not result.stdout
    assert "error: size '31x64'" in result.stderr


@pytest.mark.slow
def test_tool_runs_outside_of_the_checkout(tmp_path):
    tool = ROOT / 'tools' / 'count_operations.py'
    words = [sys.executable, str(tool), '--networks', 'resnet50', '--sizes', '64x96']
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 4 and not [*tmp_path.iterdir()]
