"""Fused kernels: the same values and gradients as the portable path, by an interpreter or a GPU."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from contnet_mm import ConTNet
from contnet_mm.models import kernels
from contnet_mm.models.encoder import WindowEncoders
from contnet_mm.models.window_layout import HAS_CUSTOM_OPS
from tests.encoding import encode, layout_for

pytestmark = pytest.mark.skipif(
    not (HAS_CUSTOM_OPS and kernels.HAS_TRITON), reason='kernels need Triton and torch 2.4'
)
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
POSITIONS = ('absolute', 'relative')


def make_encoders(channels=16, windows=(2, 4), heads=2, hidden=24, dtype=torch.float32, **kwargs):
    """Return a pair of encoders with weights large enough to matter."""
    config = dict(position='absolute', pre_norm=False, qkv_bias=True, drop_rate=0.0)
    encoders = WindowEncoders(
        channels,
        windows,
        num_heads=heads,
        feedforward_channels=hidden,
        fused=True,
        **{**config, **kwargs},
    )
    for parameter in encoders.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    return encoders.to(DEVICE, dtype)


def run(encoders, x, fused):
    """Return the result, that without gradients, and the gradients of input and parameters."""
    encoders.fused = fused
    x = x.clone().requires_grad_()
    out = encode(encoders, x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    grads = torch.autograd.grad((out * weights).sum(), [x, *encoders.parameters()])
    with torch.no_grad():
        return out, encode(encoders, x), *grads


def check(encoders, x, tolerance=1e-4):
    """Compare the kernels with the portable path, which runs in float64 as the reference."""
    assert encoders._kernels_take(x, layout_for(encoders, x))
    exact = run(copy.deepcopy(encoders).double(), x.double(), fused=False)
    for name, mine, other in zip(
        ['result', 'inference', 'input', *dict(encoders.named_parameters())],
        run(encoders, x, fused=True),
        exact,
        strict=True,
    ):
        assert mine.shape == other.shape and mine.dtype == x.dtype, name
        if not other.numel():
            continue
        # A bias of the keys changes no weight: its gradient is a sum of rounding errors.
        scale = max(other.abs().max().item(), 1e-3 if name.endswith('qkv.bias') else 0.0)
        error = (mine.double() - other).abs().max().item()
        assert error <= tolerance * scale + 1e-12, f'{name}: {error:.2g} of {scale:.2g}'


# Each value of each option with each of another.
@pytest.mark.parametrize(
    ('position', 'pre_norm', 'heads'),
    [('absolute', False, 1), ('absolute', True, 2), ('relative', False, 2), ('relative', True, 1)],
)
def test_kernels_give_values_and_gradients_of_the_portable_path(position, pre_norm, heads):
    encoders = make_encoders(heads=heads, position=position, pre_norm=pre_norm)
    check(encoders, torch.randn(2, 16, 3, 5, device=DEVICE))


@settings(max_examples=6, deadline=None)
@given(
    batch=st.integers(0, 2),
    height=st.integers(1, 5),
    width=st.integers(1, 3),
    windows=st.sampled_from([(2, 4), (3, 3), (4, 2), (1, 3)]),
    qkv_bias=st.booleans(),
    position=st.sampled_from(POSITIONS),
)
def test_any_size_of_map_and_batch_is_taken(batch, height, width, windows, qkv_bias, position):
    encoders = make_encoders(channels=4, windows=windows, qkv_bias=qkv_bias, position=position)
    check(encoders, torch.randn(batch, 4, height, width, device=DEVICE))


@pytest.mark.parametrize(
    'channels, heads, hidden, position', [(48, 1, 196, 'relative'), (64, 1, 256, 'absolute')]
)
def test_windows_and_widths_of_the_first_stages(channels, heads, hidden, position):
    encoders = make_encoders(channels, (7, 14), heads, hidden, position=position)
    check(encoders, torch.randn(1, channels, 9, 15, device=DEVICE))


@pytest.mark.slow
@pytest.mark.parametrize(
    'channels, heads, hidden, windows',
    [
        (96, 2, 392, (7, 14)),
        (128, 2, 512, (7, 14)),
        (192, 4, 768, (7, 14)),
        (256, 4, 1024, (7, 14)),
        (384, 8, 768, (7, 7)),
        (512, 8, 1024, (7, 7)),
    ],
)
def test_every_width_of_every_arch(channels, heads, hidden, windows, monkeypatch):
    monkeypatch.setattr(kernels, 'MAX_CHANNELS', 512)
    encoders = make_encoders(channels, windows, heads, hidden)
    for parameter in encoders.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, channels**-0.5)
    check(encoders, torch.randn(1, channels, 8, 15, device=DEVICE))


@pytest.mark.parametrize('position', POSITIONS)
def test_bfloat16_errs_as_little_as_its_digits_allow(position):
    encoders = make_encoders(channels=32, position=position)
    for parameter in encoders.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, 32**-0.5)
    encoders = encoders.bfloat16()
    x = torch.randn(2, 32, 6, 7, device=DEVICE, dtype=torch.bfloat16)
    exact = run(copy.deepcopy(encoders).double(), x.double(), fused=False)
    portable = run(encoders, x, fused=False)
    mine = run(encoders, x, fused=True)
    for a, b, c in zip(mine, portable, exact, strict=True):
        scale = c.abs().max()
        error, allowed = ((y.double() - c).abs().max() / scale for y in (a, b))
        assert error <= max(2e-2, 2 * allowed)


@pytest.mark.parametrize('pre_norm', [False, True])
def test_autocast_casts_weights_and_keeps_their_gradients_in_float32(pre_norm):
    encoders = make_encoders(pre_norm=pre_norm)
    x = torch.randn(1, 16, 5, 4, device=DEVICE)
    exact = encode(encoders, x)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = encode(encoders, x)
    assert out.dtype == torch.bfloat16
    assert ((out - exact).abs().max() / exact.abs().max()).item() < 3e-2
    out.float().square().mean().backward()
    assert {p.grad.dtype for p in encoders.parameters()} == {torch.float32}


def test_map_and_weights_of_different_dtypes_are_refused():
    with pytest.raises(TypeError, match='must have one dtype, got torch.float16 and torch.float32'):
        encode(make_encoders(), torch.randn(1, 16, 4, 4, device=DEVICE).half())


def test_maps_in_any_memory_are_taken():
    encoders = make_encoders(windows=(2, 2)).requires_grad_(False)
    x = torch.randn(2, 16, 3, 2, device=DEVICE)
    last = x.contiguous(memory_format=torch.channels_last)
    strided = torch.randn(2, 16, 6, 4, device=DEVICE)[:, :, ::2, ::2].copy_(x)
    expected = encode(encoders, x)
    for other in (last, strided, x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert other.stride() != x.stride()
        torch.testing.assert_close(encode(encoders, other), expected, rtol=0, atol=0)


def arguments(name, position='absolute', pre_norm=False, strided=False):
    """Return arguments of an operator; its backward pass takes what it has saved."""
    from contnet_mm.models.kernels import attention, mlp

    def tensor(*shape):
        x = torch.randn(*shape[::-1]).permute(*range(len(shape))[::-1]) if strided else None
        x = torch.randn(*shape) if x is None else x
        return x.to(DEVICE).requires_grad_('backward' not in name)

    if 'mlp' in name:
        x, w1, b1, w2, b2 = tensor(10, 8), tensor(12, 8), tensor(12), tensor(8, 12), tensor(8)
        gamma, beta = tensor(8), tensor(8)
        forward = x, w1, b1, w2, b2, gamma, beta, 1e-5, pre_norm, True
        if 'backward' not in name:
            return forward
        saved = mlp.fused_mlp(*forward)[1:]
        return tensor(10, 8), x, w1, b1, w2, gamma, beta, *saved, pre_norm
    absolute = position == 'absolute'
    table = tensor(4, 8) if absolute else None
    bias = None if absolute else tensor(2, 4, 4)
    x, qkv_weight, qkv_bias = tensor(1, 2, 3, 8), tensor(24, 8), tensor(24) if absolute else None
    weight, proj_bias, gamma, beta = tensor(8, 8), tensor(8), tensor(8), tensor(8)
    first = x, table, bias, qkv_weight, qkv_bias, weight
    forward = *first, proj_bias, gamma, beta, 1e-5, 2, 2, pre_norm, True
    if 'backward' not in name:
        return forward
    saved = attention.fused_attention(*forward)[1:]
    return tensor(1, 2, 3, 8), *first, gamma, beta, *saved, 2, 2, pre_norm


OPERATORS = ('fused_mlp', 'fused_mlp_backward', 'fused_attention', 'fused_attention_backward')


@pytest.mark.parametrize(('pre_norm', 'strided'), [(False, True), (True, False)])
@pytest.mark.parametrize('name', OPERATORS)
def test_operators_keep_their_promises_to_a_compiler(name, pre_norm, strided):
    from contnet_mm.models.kernels import encoder  # noqa: F401 (registers them)

    operator = getattr(torch.ops.contnet_mm, name).default
    for position in POSITIONS if 'attention' in name else POSITIONS[:1]:
        torch.library.opcheck(operator, arguments(name, position, pre_norm, strided))


def test_a_backward_pass_that_nothing_was_saved_for_is_refused():
    from contnet_mm.models.kernels.mlp import fused_mlp

    *rest, _ = arguments('fused_mlp')
    with pytest.raises(ValueError, match='save_for_backward must be True'):
        fused_mlp(*rest, False)[0].sum().backward()


class _NoGradient(torch.autograd.Function):
    """Hands no gradient on."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize('name', OPERATORS[::2])
def test_a_result_that_no_gradient_reaches_hands_none_on(name):
    x, *rest = arguments(name)
    out = getattr(torch.ops.contnet_mm, name)(x, *rest)[0]
    (_NoGradient.apply(out).sum() + x.sum()).backward()
    assert torch.equal(x.grad, torch.ones_like(x)) and rest[-8].grad is None


def test_autocast_around_the_backward_pass_alone_changes_nothing():
    encoders, x = make_encoders(), torch.randn(1, 16, 4, 5, device=DEVICE)
    grads = []
    for enabled in (False, True):
        out = encode(encoders, x).square().sum()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=enabled):
            grads.append(torch.autograd.grad(out, [*encoders.parameters()]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_frozen_encoders_save_nothing_for_a_backward_pass(monkeypatch):
    import contnet_mm.models.kernels.encoder as encoder

    saves = []

    def mlp(*args):
        saves.append(args[-1])
        return args[:1]

    monkeypatch.setattr(encoder, 'fused_mlp', mlp)
    encoders, x = make_encoders(), torch.randn(1, 16, 4, 4, device=DEVICE)
    encode(encoders, x)
    encode(encoders.requires_grad_(False), x)
    encode(encoders, x.requires_grad_())
    assert saves == [True, True, False, False, True, True]


def test_operations_are_counted_as_those_of_the_portable_path():
    from torch.utils.flop_counter import FlopCounterMode

    encoders = make_encoders()
    x = torch.randn(2, 16, 5, 7, device=DEVICE)
    counts = []
    for encoders.fused in (False, True):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encode(encoders, x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


class Called(Exception):
    """The kernels were asked to run."""


@pytest.fixture
def trap(monkeypatch):
    import contnet_mm.models.kernels.encoder

    def attend(*_, **__):
        raise Called

    monkeypatch.setattr(contnet_mm.models.kernels.encoder, 'attend', attend)


def test_kernels_run_only_where_they_are_asked_for(trap, thin_arch):
    x = torch.randn(1, 3, 32, 32, device=DEVICE)
    with pytest.raises(Called):
        ConTNet(thin_arch, fused=True).eval().to(DEVICE)(x)
    ConTNet(thin_arch).eval().to(DEVICE)(x)


def test_what_kernels_do_not_take_falls_back(trap, monkeypatch):
    x = torch.randn(1, 16, 4, 4, device=DEVICE)
    drops = make_encoders(drop_rate=0.5)
    encode(drops, x)
    with pytest.raises(Called):  # nothing is dropped in evaluation
        encode(drops.eval(), x)
    encode(make_encoders().double(), x.double())
    for limit, value in (('MAX_CHANNELS', 15), ('MAX_WINDOW_SIZE', 3), ('MAX_HEAD_DIM', 7)):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, limit, value)
            encode(make_encoders(), x)
    if DEVICE == 'cpu':
        monkeypatch.setattr(kernels, 'INTERPRETED', False)
        encode(make_encoders(), x)


@pytest.mark.parametrize('capability, known', [((9, 0), True), ((8, 0), False), ((10, 0), False)])
def test_only_the_gpu_that_kernels_are_compiled_for_gets_them(capability, known, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: capability)
    assert kernels.is_known_gpu(0) is known

    torch._dynamo.reset()  # or the answer of another GPU would be remembered

    def ask(x):
        return x + 1 if kernels.is_known_gpu(x.device.index) else x - 1

    compiled = torch.compile(ask, backend='eager', fullgraph=True)
    assert compiled(torch.zeros(2)).tolist() == ask(torch.zeros(2)).tolist()


def test_missing_triton_is_told_where_a_gpu_would_need_it(monkeypatch):
    monkeypatch.setattr(kernels, 'HAS_TRITON', False)
    with pytest.raises(ImportError, match='fused=True needs Triton'):
        encode(make_encoders(), torch.randn(1, 16, 4, 4, device=DEVICE))


def test_fused_must_be_a_flag(thin_arch):
    with pytest.raises(TypeError, match='fused must be True or False'):
        ConTNet(thin_arch, fused='yes')


def test_a_network_with_kernels_takes_the_weights_of_one_without(thin_arch):
    portable, fused = (ConTNet(thin_arch, fused=flag).eval().to(DEVICE) for flag in (False, True))
    fused.load_state_dict(portable.state_dict())
    x = torch.randn(1, 3, 50, 39, device=DEVICE)
    with torch.no_grad():
        for a, b in zip(portable(x), fused(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_checkpointing_leaves_the_gradients_as_they_are(thin_arch):
    x = torch.randn(1, 3, 40, 33, device=DEVICE)
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        net = ConTNet(thin_arch, fused=True, with_cp=with_cp, out_indices=(0,)).to(DEVICE)
        sum(out.square().mean() for out in net(x)).backward()
        grads.append([p.grad for p in net.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_kernels_compile_for_an_h100_within_its_shared_memory():
    script = Path(__file__).with_name('compile_kernels.py')
    env = {key: value for key, value in os.environ.items() if key != 'TRITON_INTERPRET'}
    command = [sys.executable, script]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=3000)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count('shared memory') >= 30


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a CUDA device')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_more_windows_than_a_grid_axis_are_taken(dtype):
    encoders = make_encoders(channels=16, windows=(2, 2), dtype=dtype)
    x = torch.randn(2, 16, 2 * 260, 2 * 260, device=DEVICE, dtype=dtype)  # 135,200 windows
    part = slice(256, 264)
    whole = run(encoders, x, fused=True)[1]
    with torch.no_grad():
        alone = encode(encoders, x[1:, :, part, part])
    torch.testing.assert_close(whole[1:, :, part, part], alone, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a CUDA device')
@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('channels, heads, hidden', [(64, 1, 256), (128, 2, 512)])
def test_kernels_on_a_gpu_are_right_and_repeat_themselves(channels, heads, hidden, dtype, position):
    encoders = make_encoders(channels, (7, 14), heads, hidden, position=position).eval()
    for parameter in encoders.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, channels**-0.5)
    encoders = encoders.to(dtype)
    x = torch.randn(2, channels, 50, 84, device=DEVICE).to(dtype)
    first, second = (run(encoders, x, fused=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    exact = run(copy.deepcopy(encoders).double(), x.double(), fused=False)
    portable = run(encoders, x, fused=False)
    for a, b, c in zip(first, portable, exact, strict=True):
        error, allowed = ((y.double() - c).abs().max() / c.abs().max() for y in (a, b))
        limit = 1e-4 if dtype == torch.float32 else 2e-2
        assert error <= max(limit, 1.5 * allowed)
