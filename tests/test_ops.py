"""The operators that hide windows from a compiler: what they promise it, and what they compute."""

import pytest
import torch
from torch import nn

from contnet_mm import ConTNet, attention, ops, windows
from contnet_mm.layers import WindowEncoders
from contnet_mm.windows import Maps, cut, token_order

needs_operators = pytest.mark.skipif(
    not ops.AVAILABLE, reason='this torch has no operators of its users'
)

SIZE, SIDES = [2, 9, 11], [4, 2]  # whole windows of 4 and all kinds of border
TOKENS = 2 * 9 * 11
NARROW = [1, 9, 2]  # a map in whose order nothing moves
FORWARD = ('to_windows', 'to_map', 'add_position', 'mix_windows')
BACKWARD = ('add_position_backward', 'mix_windows_backward')


def arguments(name, side=4, biased=True, size=SIZE, contiguous=True):
    """Return arguments of an operator, of which those that autograd follows need gradients."""
    count, channels, heads = size[0] * size[1] * size[2], 8, 2

    def tokens(width):
        x = torch.randn(count, width) if contiguous else torch.randn(width, count).T
        return x.requires_grad_(name in FORWARD)

    if name == 'to_windows':
        layout = torch.channels_last if contiguous else torch.contiguous_format
        x = torch.randn(size[0], channels, *size[1:]).contiguous(memory_format=layout)
        return x.requires_grad_(), SIDES
    if name == 'to_map':
        return tokens(channels), size, SIDES
    if name == 'add_position':
        table = torch.randn(side**2, channels, requires_grad=True)
        return tokens(channels), table, size, SIDES, side
    if name == 'add_position_backward':
        return tokens(channels), size, SIDES, side
    # As the table of relative positions gives it, with heads innermost.
    bias = torch.randn(side**2, side**2, heads).permute(2, 0, 1) if biased else None
    if biased and name in FORWARD:
        bias.requires_grad_()
    rest = (None, size, SIDES, side, heads, 0.0)
    if name == 'mix_windows':
        return tokens(3 * channels), bias, *rest
    return tokens(channels), tokens(3 * channels), bias, *rest


@needs_operators
@pytest.mark.parametrize('size', [SIZE, NARROW], ids=str)
@pytest.mark.parametrize('contiguous', [True, False])
@pytest.mark.parametrize('name', FORWARD + BACKWARD)
def test_operators_keep_their_promises_to_a_compiler(name, contiguous, size):
    operator = getattr(torch.ops.contnet_mm, name).default
    for side in (4,) if name.startswith('to') else SIDES:
        torch.library.opcheck(operator, arguments(name, side, size=size, contiguous=contiguous))
    if name.startswith('mix'):
        torch.library.opcheck(operator, arguments(name, biased=False, size=size))


@needs_operators
@pytest.mark.parametrize('size', [SIZE, NARROW, [1, 4, 4]], ids=str)
@pytest.mark.parametrize('contiguous', [True, False])
@pytest.mark.parametrize('name', FORWARD + BACKWARD)
def test_results_lie_in_memory_as_a_compiler_was_told(name, contiguous, size):
    from torch._subclasses.fake_tensor import FakeTensorMode

    operator = getattr(torch.ops.contnet_mm, name)
    args = arguments(name, size=size, contiguous=contiguous)
    real = operator(*args)
    with FakeTensorMode() as mode:
        fake = operator(*(mode.from_tensor(x) if torch.is_tensor(x) else x for x in args))
    if torch.is_tensor(real):
        real, fake = [real], [fake]
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@needs_operators
def test_attention_with_dropout_keeps_its_promises_to_a_compiler():
    operator = torch.ops.contnet_mm.mix_windows.default
    qkv, bias, _, *rest, _ = arguments('mix_windows')
    torch.library.opcheck(operator, (qkv, bias, torch.tensor(5), *rest, 0.3))


@pytest.mark.parametrize('size', [SIZE, NARROW], ids=str)
@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format], ids=str)
def test_maps_go_into_the_order_of_windows_and_back(size, layout):
    x = torch.randn(size[0], 8, *size[1:]).contiguous(memory_format=layout)
    tokens = ops.to_windows(x, SIDES)
    places = token_order(torch.arange(x.numel() // 8).view(size), SIDES)
    assert torch.equal(tokens, x.permute(0, 2, 3, 1).flatten(0, 2)[places])
    back = ops.to_map(tokens, Maps(*size), SIDES)
    assert torch.equal(back, x)
    if layout == torch.channels_last:
        assert back.is_contiguous(memory_format=torch.channels_last)


@needs_operators
@pytest.mark.parametrize('side', SIDES)
def test_operators_compute_what_the_functions_compute(side):
    cuts = cut(*SIZE[1:], SIDES[0], count=SIZE[0])
    tokens, table, *rest = arguments('add_position', side)
    expected = attention.add_position(tokens, table, cuts, side, SIDES[1])
    assert torch.equal(torch.ops.contnet_mm.add_position(tokens, table, *rest), expected)
    qkv, bias, *rest = arguments('mix_windows', side)
    expected = attention.mix_windows(qkv, bias, cuts, side, SIDES[1], 2)
    assert torch.equal(torch.ops.contnet_mm.mix_windows(qkv, bias, *rest), expected)
    x, sides = arguments('to_windows')
    tokens = ops.to_windows(x, sides)
    assert torch.equal(torch.ops.contnet_mm.to_windows(x, sides), tokens)
    assert torch.equal(torch.ops.contnet_mm.to_map(tokens, SIZE, sides), x)


@needs_operators
@pytest.mark.parametrize('drop_rate', [0.0, 0.3])
@pytest.mark.parametrize('name', FORWARD)
def test_finite_differences_agree_with_the_gradients_of_operators(name, drop_rate):
    size = [1, 3, 5]
    args = [x.detach().double() if torch.is_tensor(x) else x for x in arguments(name, size=size)]
    if name == 'mix_windows' and drop_rate:
        args[2], args[-1] = torch.tensor(5), drop_rate
    for i in (0, 1):
        if torch.is_tensor(args[i]):
            args[i].requires_grad_()
    assert torch.autograd.gradcheck(getattr(torch.ops.contnet_mm, name), args, fast_mode=True)


@needs_operators
def test_the_same_seed_drops_the_same_weights():
    qkv, bias, _, *rest, _ = arguments('mix_windows')
    first, again, other = (
        torch.ops.contnet_mm.mix_windows(qkv, bias, torch.tensor(seed), *rest, 0.3)
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@needs_operators
def test_what_a_compiled_attention_drops_follows_the_seed_of_torch():
    qkv = torch.randn(TOKENS, 24)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(ops.mix_windows(qkv, None, Maps(*SIZE), 4, SIDES, 2, 0.3))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def encoders(position, **kwargs):
    defaults = dict(num_heads=2, feedforward_channels=12, pre_norm=False, qkv_bias=True)
    module = WindowEncoders(8, (2, 4), position=position, **dict(defaults, drop_rate=0.0) | kwargs)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@needs_operators
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('position', ['absolute', 'relative'])
def test_compiled_encoders_have_the_values_and_gradients_of_eager_ones(position, training):
    torch._dynamo.reset()
    eager = encoders(position).double().train(training)
    compiled = torch.compile(eager, backend='aot_eager', fullgraph=True, dynamic=True)
    for shape in [(2, 8, 9, 11), (3, 8, 12, 8), (2, 8, 5, 3), (1, 8, 9, 11)]:
        results = []
        x = torch.randn(*shape, dtype=torch.float64)
        for module in (eager, compiled):
            image = x.clone().requires_grad_()
            out = module(image)
            inputs = [image, *eager.parameters()]
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), results[0][0].detach())


@needs_operators
def test_a_compiler_sees_our_operators_and_no_windows():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compile(encoders('absolute').eval(), backend=backend, dynamic=True)(
        torch.randn(2, 8, 9, 11)
    )
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op == 'call_function']
    counts = [sum(f'contnet_mm.{name}.' in target for target in called) for name in FORWARD]
    assert counts == [1, 1, 2, 2]
    assert not [target for target in called if 'softmax' in target or 'index' in target]


@needs_operators
def test_an_exported_network_holds_no_operators_of_ours(thin_arch):
    arch = dict(thin_arch, depths=(1, 1, 1, 1))
    net = ConTNet(arch, position='relative').eval()
    program = torch.export.export(net, (torch.randn(1, 3, 45, 60),), strict=False)
    assert 'contnet_mm' not in str(program.graph)


@pytest.mark.parametrize('position', ['absolute', 'relative'])
def test_tracing_leaves_nothing_behind_that_holds_no_values(thin_arch, position):
    from torch.fx.experimental.proxy_tensor import make_fx

    windows._kept_order.cache_clear()
    windows._kept_places.cache_clear()
    module = encoders(position).eval()
    x = torch.randn(2, 8, 9, 11)
    with torch.no_grad():
        make_fx(module, tracing_mode='fake', _allow_non_fake_inputs=True)(x)
    assert type(module(x)) is torch.Tensor
