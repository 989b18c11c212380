"""Encoders of a block: values, gradients, runs of windows, dropout, compiling and tracing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from contnet_mm.models import encoder as module
from contnet_mm.models import window_layout as layouts
from contnet_mm.models.encoder import WindowEncoders
from contnet_mm.models.window_attention import force_way
from contnet_mm.models.window_layout import HAS_CUSTOM_OPS, Way
from tests.encoding import encode, layout_for
from tests.reference import encode_map

needs_operators = pytest.mark.skipif(
    not HAS_CUSTOM_OPS, reason='this torch has no operators of its users'
)
POSITIONS = ['absolute', 'relative']
WINDOWS = [(2, 4), (4, 2), (3, 3)]


def make(windows=(2, 4), **kwargs):
    """Make encoders whose every parameter matters."""
    defaults = dict(
        num_heads=2,
        feedforward_channels=12,
        position='absolute',
        pre_norm=False,
        qkv_bias=True,
        drop_rate=0.0,
    )
    encoders = WindowEncoders(8, windows, **defaults | kwargs)
    for parameter in encoders.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoders


def plain_encode(encoders, x):
    """Encode one window after the other."""
    for encoder in encoders:
        x = encode_map(encoder, x)
    return x


def values_and_gradients(encoders, x, function):
    x = x.clone().requires_grad_()
    out = function(encoders, x)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
    return [out, *torch.autograd.grad(out, [x, *encoders.parameters()], grad)]


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    windows=st.sampled_from(WINDOWS),
    position=st.sampled_from(POSITIONS),
    pre_norm=st.booleans(),
    qkv_bias=st.booleans(),
    way=st.sampled_from([Way.GROUPED, Way.PADDED]),
)
def test_encoders_have_the_values_and_gradients_of_a_plain_loop(
    batch, height, width, windows, position, pre_norm, qkv_bias, way
):
    encoders = make(windows, position=position, pre_norm=pre_norm, qkv_bias=qkv_bias).double()
    x = torch.randn(batch, 8, height, width, dtype=torch.float64)
    expected = values_and_gradients(encoders, x, plain_encode)
    with force_way(way):
        found = values_and_gradients(encoders, x, encode)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(encode(encoders, x), expected[0].detach())


@pytest.mark.parametrize('windows', WINDOWS)
@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('pre_norm', [False, True])
def test_encoders_work_on_the_windows_of_each_image_by_themselves(windows, position, pre_norm):
    encoders = make(windows, position=position, pre_norm=pre_norm).double().eval()
    x = torch.randn(2, 8, 9, 11, dtype=torch.float64)
    with torch.no_grad():
        whole = encode(encoders, x)
        size = max(windows)
        for top in range(0, 9, size):
            for left in range(0, 11, size):
                part = (..., slice(top, top + size), slice(left, left + size))
                torch.testing.assert_close(whole[part], encode(encoders, x[part]))
        torch.testing.assert_close(whole[1:], encode(encoders, x[1:]))


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([(2, 4), (4, 2), (7, 7)]),
    st.sampled_from(POSITIONS),
    st.sampled_from([1, 2000, 10**6]),
)
def test_runs_of_windows_have_the_values_of_all_at_once(
    batch, height, width, windows, position, run_bytes
):
    encoders = make(windows, position=position).eval()
    x = torch.randn(batch, 8, height, width)
    at_once = encode(encoders, x).detach()  # with gradients, for which nothing is split into runs
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, 'RUN_BYTES', run_bytes)
        torch.testing.assert_close(encode(encoders, x), at_once)


@pytest.mark.parametrize('run_windows', [1, 3, 100])
def test_runs_hold_no_more_than_the_caches_and_no_window_is_split(monkeypatch, run_windows):
    # Hidden activations of a window of 4 x 4 tokens take 12 x 4 x 16 bytes.
    monkeypatch.setattr(module, 'RUN_BYTES', run_windows * 768)
    encoders, seen = make().eval(), []
    encoders[0].register_forward_hook(lambda encoder, args, out: seen.append(args[0].shape))
    with torch.inference_mode():
        encode(encoders, torch.randn(2, 8, 9, 11))
    areas = [area for *_, area, channels in seen]
    tokens = [shape.numel() // 8 for shape in seen]
    assert sum(tokens) == 198 and max(tokens) <= run_windows * 16
    assert set(areas) <= {16, 12, 4, 3}  # 4 x 4, 4 x 3, 1 x 4 and 1 x 3
    if run_windows == 1:
        assert len(seen) >= 8 + 4  # whole windows and those at the right
    if run_windows == 100:
        assert len(seen) == 4
    seen.clear()
    encode(encoders, torch.randn(2, 8, 9, 11))
    assert seen == [(2, 99, 8)]


# Maps as narrow as the small windows are in order as they are, so that nothing is copied.
@pytest.mark.parametrize('size', [(9, 11), (3, 2), (4, 4)], ids=str)
@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('windows', [(2, 4), (4, 4)])
def test_encoders_leave_their_input_alone(size, grad, position, windows):
    encoders = make(windows, position=position).eval()
    x = torch.randn(2, 8, *size).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    with torch.set_grad_enabled(grad):
        out = encode(encoders, x)
    assert torch.equal(x, before)
    assert out.data_ptr() != x.data_ptr()


@pytest.mark.parametrize('way', [Way.GROUPED, Way.PADDED])
@pytest.mark.parametrize('position', POSITIONS)
def test_an_empty_batch_passes_the_encoders(position, way):
    encoders = make(position=position)
    for grad in (False, True):
        for size in ((9, 11), (8, 8)):
            with torch.set_grad_enabled(grad), force_way(way):
                out = encode(encoders, torch.zeros(0, 8, *size))
            assert out.shape == (0, 8, *size) and out.requires_grad == grad
    out.sum().backward()
    assert not any(parameter.grad.any() for parameter in encoders.parameters())


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('size', [(9, 11), (3, 2), (4, 4)], ids=str)
def test_a_channels_last_map_comes_out_as_one(size, grad):
    x = torch.randn(2, 8, *size).contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(grad):
        out = encode(make(), x)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('way', [Way.GROUPED, Way.PADDED])
def test_dropout_of_an_encoder_agrees_with_finite_differences(way):
    encoders = make(drop_rate=0.3, position='relative').double().train()
    x = torch.randn(1, 8, 3, 5, dtype=torch.float64, requires_grad=True)

    def call(x):
        torch.manual_seed(1)
        return encode(encoders, x)

    with force_way(way):
        assert torch.autograd.gradcheck(call, x, fast_mode=True)


def test_under_autocast_tokens_keep_their_dtype_beside_positions_of_another():
    encoders = make(pre_norm=True)
    x = torch.randn(2, 8, 9, 11).bfloat16()
    layout = layout_for(encoders, x)
    for encoder in encoders:
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert encoder(layout.to_windows(x), layout).dtype == torch.bfloat16


@pytest.mark.parametrize('position', POSITIONS)
def test_under_autocast_values_and_gradients_are_close_to_those_in_float32(position):
    encoders, x = make(position=position), torch.randn(2, 8, 9, 11)
    for parameter in encoders.parameters():
        nn.init.normal_(parameter, std=0.2)
    expected = values_and_gradients(encoders, x, encode)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = values_and_gradients(encoders, x, encode)
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b).abs().max() <= 0.1 * b.abs().max() + 1e-3


def test_linear_layers_can_be_watched():
    encoders, seen = make(), []
    for linear in encoders.modules():
        if isinstance(linear, nn.Linear):
            assert type(linear) is nn.Linear
            linear.register_forward_hook(lambda *_: seen.append(1))
    for grad in (False, True):
        seen.clear()
        with torch.set_grad_enabled(grad):
            encode(encoders, torch.randn(2, 8, 4, 4))
        assert len(seen) == 8  # four in each of two encoders


@needs_operators
@pytest.mark.parametrize('position', POSITIONS)
def test_compiled_encoders_have_the_values_and_gradients_of_eager_ones(position):
    torch._dynamo.reset()
    eager = make(position=position).double()
    compiled = torch.compile(eager, backend='aot_eager', fullgraph=True, dynamic=True)

    def compiled_encode(encoders, x):
        return compiled(x, layout_for(encoders, x, is_compiling=True))

    for shape in [(2, 8, 9, 11), (3, 8, 12, 8), (2, 8, 5, 3)]:
        x = torch.randn(*shape, dtype=torch.float64)
        expected = values_and_gradients(eager, x, encode)
        for a, b in zip(values_and_gradients(eager, x, compiled_encode), expected, strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            torch.testing.assert_close(compiled_encode(eager, x), expected[0].detach())


@needs_operators
def test_a_compiler_sees_one_operator_per_attention_and_no_windows():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    encoders, x = make().eval(), torch.randn(2, 8, 9, 11)
    compiled = torch.compile(encoders, backend=backend, dynamic=True)
    compiled(x, layout_for(encoders, x, is_compiling=True))
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op.startswith('call')]
    assert sum('contnet_mm.window_attention' in target for target in called) == 2
    assert not [target for target in called if 'softmax' in target]
    # Orders of tokens come in as inputs, or there would be a graph for each size.
    assert not [
        node for node in graph.graph.nodes if node.op == 'get_attr' and 'index' in node.name
    ]


@pytest.mark.parametrize('position', POSITIONS)
def test_tracing_leaves_nothing_behind_that_holds_no_values(monkeypatch, position):
    from torch.fx.experimental.proxy_tensor import make_fx

    monkeypatch.setattr(layouts, '_cache', layouts._Cache())
    encoders = make(position=position).eval()
    x = torch.randn(2, 8, 9, 11)
    with torch.no_grad():
        make_fx(lambda x: encode(encoders, x), tracing_mode='fake', _allow_non_fake_inputs=True)(x)
    assert type(encode(encoders, x)) is torch.Tensor


def test_traced_encoders_have_the_values_of_eager_ones(monkeypatch):
    encoders, x = make(position='relative').eval(), torch.randn(2, 8, 9, 11)
    encoders.requires_grad_(False)  # a tracer takes them for constants
    layout = layout_for(encoders, x, is_tracing=True)
    with torch.no_grad():
        # A tracer, and whatever counts operations by it, overlooks a Function of ours.
        monkeypatch.setattr(torch.autograd.Function, 'apply', None)
        traced = torch.jit.trace(lambda x: encoders(x, layout), x, check_trace=False)
        assert any(node.kind() == 'aten::softmax' for node in traced.graph.nodes())
        monkeypatch.undo()
        other = torch.randn(2, 8, 9, 11)
        torch.testing.assert_close(traced(other), encode(encoders, other))


def test_attention_reads_whether_it_trains_from_its_mode(monkeypatch):
    rates = []
    original = module.window_attention
    monkeypatch.setattr(
        module, 'window_attention', lambda *args: rates.append(args[-1]) or original(*args)
    )
    encoders, x = make(drop_rate=0.25), torch.randn(2, 8, 4, 4)
    encode(encoders.train(), x)
    assert encoders.has_dropout and rates == [0.25] * 2
    encode(encoders.eval(), x)
    assert not encoders.has_dropout and rates[2:] == [0.0] * 2
