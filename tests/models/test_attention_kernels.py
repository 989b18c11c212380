"""What the kernels of a GPU are called with: no check of shapes alone sees what they refuse."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from contnet_mm.models import window_attention as module
from contnet_mm.models import window_layout as layouts
from contnet_mm.models.window_attention import choose_way, force_way, window_attention
from contnet_mm.models.window_layout import Way, window_layout

SIZES = (4, 2)
ODD = (2, 9, 11)  # batch, height, width: whole windows of 4 and all kinds of border
WHOLE = (2, 8, 8)
LENGTHS = {ODD: [16] * 4 + [12] * 2 + [4] * 2 + [3], WHOLE: [16] * 4}
HALF = [torch.bfloat16, torch.float16]
MAX_WINDOWS = 65535  # of a grid axis of CUDA
needs_flash = pytest.mark.skipif(
    module.varlen_attn is None, reason='this torch has no attention with cumulative lengths'
)
needs_efficient = pytest.mark.skipif(
    not module.HAS_EFFICIENT_ATTENTION, reason='the private kernel of this torch is another'
)


def attend(maps, dtype, bias_dtype=None, drop_rate=0.0, head_dim=8, sizes=SIZES, device='meta'):
    """Attend as a GPU would, on shapes alone, and return the result and its inputs."""
    batch, height, width = maps
    size = sizes[0]
    qkv = torch.empty(batch, height * width, 3 * 2 * head_dim, dtype=dtype, device=device)
    qkv.requires_grad_()
    bias = None
    if bias_dtype is not None:
        bias = torch.empty(2, size**2, size**2, dtype=bias_dtype, device=device)
    options = dict(has_bias=bias is not None, has_dropout=drop_rate > 0)
    way = choose_way(torch.device(device), dtype, head_dim, **options)
    layout = window_layout(height, width, sizes, way, batch, device)
    out = window_attention(qkv, bias, layout, size, 2, drop_rate)
    assert (out.shape, out.dtype, out.device) == (
        (batch, height * width, 2 * head_dim),
        dtype,
        qkv.device,
    )
    return out, qkv


@pytest.fixture
def lengths_of(monkeypatch):
    """Look up cumulative lengths, which have no values on shapes alone."""
    known, make = {}, layouts._window_runs

    def spy(*args):
        *windows, send = args
        runs = make(*windows, send)
        for run, real in zip(runs, make(*windows, torch.from_numpy), strict=True):
            known[id(run.cumulative_lengths)] = run, real.cumulative_lengths.diff().tolist()
        return runs

    monkeypatch.setattr(layouts, '_cache', layouts._Cache())
    monkeypatch.setattr(layouts, '_window_runs', spy)
    return lambda lengths: known[id(lengths)][1]


@pytest.fixture
def flash(monkeypatch):
    """Calls of flash attention with cumulative lengths."""
    calls = []

    def spy(*args):
        calls.append(args)
        return torch.empty_like(args[0])

    monkeypatch.setattr(module, 'varlen_attn', spy)
    return calls


class EfficientCalls(TorchDispatchMode):
    """Records calls of efficient attention with cumulative lengths."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._efficient_attention_forward.default:
            self.calls.append(args)
        return function(*args, **(kwargs or {}))


def check_lengths(args, maps, lengths_of):
    """Check what both kernels need of their lengths."""
    *_, queries, keys, longest_query, longest_key = args
    assert queries is keys and queries.dtype == torch.int32 and queries.dim() == 1
    assert lengths_of(queries) == LENGTHS[maps] * maps[0]
    assert longest_query == longest_key == 16


@pytest.mark.parametrize('maps', [ODD, WHOLE], ids=str)
@pytest.mark.parametrize('dtype', HALF)
def test_flash_attention_gets_what_it_needs(flash, lengths_of, maps, dtype):
    attend(maps, dtype)
    ((q, k, v, *rest),) = flash  # one call for windows of all shapes
    for x in (q, k, v):
        assert x.shape == (maps[0] * maps[1] * maps[2], 2, 8) and x.dtype == dtype
        assert x.stride(-1) == 1 and x.shape[-1] % 8 == 0
    check_lengths(rest, maps, lengths_of)


@needs_efficient
@pytest.mark.parametrize('maps', [ODD, WHOLE], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, *HALF])
def test_efficient_attention_gets_what_it_needs(monkeypatch, lengths_of, maps, dtype):
    monkeypatch.setattr(module, 'HALF_PRECISION_KERNEL', 'efficient')
    with EfficientCalls() as recorded:
        out, qkv = attend(maps, dtype)
    ((q, k, v, bias, *rest, dropout, mask_type, save),) = recorded.calls
    for x in (q, k, v):
        assert x.shape == (1, maps[0] * maps[1] * maps[2], 2, 8) and x.dtype == dtype
        assert x.stride(-1) == 1 and x.shape[-1] % 8 == 0
    check_lengths(rest, maps, lengths_of)
    assert (bias, dropout, mask_type, save) == (None, 0.0, 0, True)
    out.sum().backward()
    assert qkv.grad.shape == qkv.shape
    with torch.no_grad(), EfficientCalls() as recorded:
        attend(maps, dtype)
    # A dispatched call leaves out what has its default, here to save nothing.
    *_, dropout, mask_type = recorded.calls[0]
    assert (dropout, mask_type) == (0.0, 0)


@pytest.mark.parametrize('dtype', HALF)
def test_queries_of_odd_strides_are_brought_in_order_for_the_kernels(flash, dtype):
    layout = window_layout(9, 11, SIZES, Way.CUMULATIVE, 2, 'meta')
    qkv = torch.empty(48, 2, 99, dtype=dtype, device='meta').permute(1, 2, 0)
    window_attention(qkv, None, layout, 4, 2)
    assert {x.stride(-1) for x in flash[0][:3]} == {1}


def test_flash_attention_takes_at_most_65535_windows_at_once(flash, lengths_of):
    attend((3, 150, 200), torch.bfloat16, sizes=(1, 1))
    assert [len(lengths_of(call[3])) for call in flash] == [MAX_WINDOWS, 90000 - MAX_WINDOWS]
    assert [len(call[0]) for call in flash] == [MAX_WINDOWS, 90000 - MAX_WINDOWS]


@needs_efficient
def test_efficient_attention_takes_at_most_65535_windows_at_once(lengths_of):
    with EfficientCalls() as recorded:
        attend((3, 150, 200), torch.float32, sizes=(1, 1))
    counts = [len(lengths_of(call[4])) for call in recorded.calls]
    assert counts == [MAX_WINDOWS, 90000 - MAX_WINDOWS]
    assert [call[0].shape[1] for call in recorded.calls] == counts


@pytest.fixture
def masked(monkeypatch):
    """Calls of scaled_dot_product_attention, and whether cuDNN might answer them."""
    calls = []

    def spy(q, k, v, attn_mask=None, dropout_p=0.0):
        cudnn = getattr(torch.backends.cuda, 'cudnn_sdp_enabled', lambda: False)()
        calls.append((q, k, v, attn_mask, dropout_p, cudnn))
        return torch.empty_like(v)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', spy)
    return calls


@pytest.mark.parametrize('maps', [ODD, WHOLE], ids=str)
@pytest.mark.parametrize('bias_dtype', [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_masked_attention_gets_what_it_needs(masked, maps, dtype, bias_dtype):
    attend(maps, dtype, bias_dtype, drop_rate=0.25)
    ((q, k, v, mask, drop_rate, _),) = masked  # one call for windows of all shapes
    windows = maps[0] * len(LENGTHS[maps])
    for x in (q, k, v):
        assert x.shape == (windows, 2, 16, 8) and x.dtype == dtype and x.stride(-1) == 1
    assert drop_rate == 0.25
    assert (mask is None) == (bias_dtype is None and maps is WHOLE)
    if mask is not None:
        # Some kernels read a float32 mask beside bfloat16 queries as garbage and say nothing.
        assert mask.dtype == dtype and mask.dim() == 4
        assert mask.expand(windows, 2, 16, 16).shape == mask.shape[:2] + (16, 16)


@pytest.mark.skipif(not hasattr(torch.backends.cuda, 'cudnn_sdp_enabled'), reason='no such switch')
def test_masked_attention_is_never_that_of_cudnn(masked):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        attend(ODD, torch.bfloat16, drop_rate=0.25)
        assert masked[0][-1] is False
        assert torch.backends.cuda.cudnn_sdp_enabled()  # for others
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize('bias_dtype', [None, torch.float32])
def test_masked_attention_takes_at_most_65535_windows_at_once(masked, bias_dtype):
    attend((3, 150, 200), torch.bfloat16, bias_dtype, drop_rate=0.25, sizes=(1, 1))
    assert [len(q) for q, *_ in masked] == [MAX_WINDOWS, 90000 - MAX_WINDOWS]
    if bias_dtype is not None:
        assert all(len(mask) in (1, len(q)) for q, _, _, mask, *_ in masked)


def test_on_a_cpu_none_of_these_kernels_is_called(flash, masked):
    with EfficientCalls() as recorded:
        attend(ODD, torch.bfloat16, device='cpu')
    assert not flash and not masked and not recorded.calls


@needs_flash
@needs_efficient
@pytest.mark.parametrize('batch', [0, 2])
@pytest.mark.parametrize('forced', [None, Way.PADDED])
@pytest.mark.parametrize('bias_dtype', [None, torch.float32])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_attention_runs_on_tensors_of_a_gpu_without_values(dtype, bias_dtype, forced, batch):
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.no_grad(),
        force_way(forced) if forced else contextlib.nullcontext(),
    ):
        attend((batch, *ODD[1:]), dtype, bias_dtype, device='cuda')
