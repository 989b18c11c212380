"""Attention: its values by each way that torch computes it, and what kernels of GPUs are given."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from contnet_mm import ConTNet
from contnet_mm.models import attention
from contnet_mm.models.attention import attend
from contnet_mm.models.windows import MASK_ALIGNMENT
from tests.helpers import POSITIONS, assert_close, build, difference

BIASES = {'none': None, 'mask': (5, 1, 1, 16), 'position': (1, 2, 9, 16), 'both': (5, 2, 9, 16)}


def make(bias, dtype=torch.float64):
    """Return queries, keys, values and a bias of 5 windows of 9 tokens, and the expected result."""
    q, k, v = torch.randn(3, 5, 2, 9, 4, dtype=dtype)
    shape = BIASES[bias]
    bias = None if shape is None else torch.randn(shape, dtype=dtype)
    logits = torch.einsum('nhqd,nhkd->nhqk', q.double(), k.double()) / 2
    logits = logits if bias is None else logits + bias[..., :9].double()
    return q, k, v, bias, torch.einsum('nhqk,nhkd->nhqd', logits.softmax(-1), v.double())


@pytest.mark.parametrize('bias', BIASES)
@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16], ids=str)
def test_attention_is_softmax_of_scaled_products_and_bias(bias, grad, dtype):
    *tensors, expected = make(bias, dtype)
    with torch.set_grad_enabled(grad):
        found = attend(*tensors)
    assert found.dtype == dtype
    assert difference(found.double(), expected) <= (1e-12 if dtype == torch.float64 else 0.02)


@pytest.mark.parametrize('bias', BIASES)
def test_windows_beyond_the_grid_of_cuda_are_split(bias, monkeypatch):
    monkeypatch.setattr(attention, 'MAX_WINDOWS', 2)
    *tensors, expected = make(bias)
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, 'scaled_dot_product_attention', lambda *args: calls.append(len(args[0])) or fused(*args)
    )
    with torch.no_grad():
        assert difference(attend(*tensors), expected) <= 1e-12
    assert calls == [2, 2, 1]


def test_dropout_drops_attention_weights():
    q, k, v, *_ = make('none')
    v = torch.ones_like(v)  # so that the result is the sum of the weights
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            found = attend(q, k, v, None, 0.5)
        assert found.std() > 0.1 and (found - 1).mean().abs() < 0.3


@pytest.mark.skipif(torch.__version__ < '2.4', reason='this torch has no float16 on a CPU')
def test_logits_beyond_float16_do_not_overflow():
    q, k, v = torch.full((3, 1, 1, 4, 64), 100.0, dtype=torch.float16)
    assert attend(q, k, v).isfinite().all()


def given_to_kernels(position, dtype):
    """Return the arguments of every call of a fused kernel, of a network on the meta device."""
    with torch.device('meta'):
        net = ConTNet('tiny', position=position).to(dtype).train()
    calls = []

    def fused(q, k, v, mask, drop_rate):
        calls.append((q, k, v, mask))
        return torch.empty_like(q)

    with patch.object(F, 'scaled_dot_product_attention', fused), torch.no_grad():
        net(torch.empty(2, 3, 97, 131, device='meta', dtype=dtype))  # windows cut in each stage
    return calls


@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_fused_kernels_get_what_they_take_without_a_copy(position, dtype):
    """torch copies a bias that is not aligned, and takes its slow path for one not contiguous."""
    calls = given_to_kernels(position, dtype)
    assert len(calls) == 8  # a fused call for each encoder
    for q, k, v, bias in calls:
        assert q.dtype == k.dtype == v.dtype == bias.dtype == dtype
        assert all(x.stride(-1) == 1 for x in (q, k, v, bias))
        assert all(stride % MASK_ALIGNMENT == 0 for stride in bias.stride()[:-1])
        assert bias.shape[0] in (1, len(q)) and bias.shape[-1] == k.shape[2]
        assert bias.shape[1] == (q.shape[1] if position == 'relative' else 1)  # nothing expanded


@pytest.mark.parametrize('position', POSITIONS)
def test_both_ways_to_attend_give_the_same_maps(thin_arch, position):
    net, x = build(thin_arch, position=position), torch.randn(2, 3, 61, 83)
    written_out = net(x)
    with torch.no_grad():
        assert_close(net(x), written_out, 1e-5)


def test_cudnn_is_left_out_and_allowed_again_afterwards():
    if not hasattr(torch.backends.cuda, 'cudnn_sdp_enabled'):
        pytest.skip('torch before 2.5 does not choose it')
    seen = []
    fused = F.scaled_dot_product_attention

    def spy(*args):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return fused(*args)

    with patch.object(F, 'scaled_dot_product_attention', spy), torch.no_grad():
        attend(*make('none')[:3])
    assert seen == [False] and torch.backends.cuda.cudnn_sdp_enabled()
