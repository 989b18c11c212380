"""Attention weights that a hook computes again are those that the layer attends with."""

import re

import pytest
import torch

from contnet_mm import ConTNet
from contnet_mm.models.window_attention import split_heads
from contnet_mm.visualization.attention import AttentionInWindow, attention_at, attention_weights
from tests.helpers import POSITIONS, ROOT, build, difference

SIZE = (150, 118)  # windows at both borders of each stage are cut


def watch(net, size):
    """Return the layer, what it got and what it gave, for each attention of a network."""
    calls, handles = [], []
    for name, module in net.named_modules():
        if name.endswith('.attn'):
            handles.append(module.register_forward_hook(lambda *call: calls.append(call)))
    net(torch.randn(1, 3, *size))
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize('position', POSITIONS)
def test_weights_times_values_are_what_the_layer_gives(thin_arch, position):
    calls = watch(build(thin_arch, position=position), SIZE)
    assert len(calls) == 12
    for attn, (x, layout), out in calls:
        with torch.no_grad():
            *_, v = split_heads(attn.qkv(x), attn.num_heads)
            expected, seen = torch.zeros_like(out), []
            for token in range(x.shape[1]):
                if token in seen:
                    continue
                weights, indices = attention_weights(attn, x, layout, token)
                mixed = (weights @ v[0, :, indices]).transpose(0, 1).flatten(1)
                expected[0, indices] = attn.proj(mixed)
                tokens = indices if layout.permutation is None else layout.permutation[indices]
                assert token in tokens.tolist()
                seen += tokens.tolist()
        assert sorted(seen) == list(range(x.shape[1]))  # each window once
        assert difference(out, expected) < 1e-5


def test_windows_around_a_pixel_are_those_of_the_last_block_of_each_stage(thin_arch):
    net = build(thin_arch)
    pairs = attention_at(net, torch.randn(1, 3, 250, 330), 240, 325)
    boxes = [[window.box for window in pair] for pair in pairs]
    # Top, left, bottom, right: of windows of 7 and 14 tokens (7 in stage 4), cut at the border.
    assert boxes == [
        [(224, 308, 252, 332), (224, 280, 252, 332)],
        [(224, 280, 256, 336), (224, 224, 256, 336)],
        [(224, 224, 256, 336), (224, 224, 256, 336)],
        [(224, 224, 256, 352), (224, 224, 256, 352)],
    ]
    for stage, pair in enumerate(pairs):
        for window in pair:
            heads = thin_arch['num_heads'][stage]
            count = len(window.tokens)
            assert window.weights.shape == (heads, count, count)
            assert torch.allclose(window.weights.sum(-1), torch.ones(heads, count))
            row, column = divmod(int(window.tokens[window.query]), window.map_size[1])
            assert (row, column) == (240 // window.stride, 325 // window.stride)


def test_without_gradients_the_same_weights_are_found(thin_arch):
    net, image = build(thin_arch), torch.randn(1, 3, 96, 96)
    expected = attention_at(net, image, 50, 20)
    with torch.no_grad():
        found = attention_at(net, image, 50, 20)
    for pair, others in zip(found, expected, strict=True):
        for window, other in zip(pair, others, strict=True):
            assert torch.equal(window.weights, other.weights)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_the_map_of_a_query_has_its_weights_where_their_tokens_are():
    tokens = torch.tensor([7, 6, 12, 11])  # rows 1 and 2, columns 1 and 2 of a map 5 wide
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.0, 0.5, 0.0]])
    window = AttentionInWindow(weights[:, None].expand(2, 4, 4), tokens, 2, (4, 5), 8)
    assert torch.allclose(window.of_query(), torch.tensor([[0.1, 0.3], [0.2, 0.4]]))
    assert window.box == (8, 8, 24, 24)


@pytest.mark.parametrize('pixel', [(-1, 0), (64, 0), (0, 80)])
def test_a_pixel_outside_is_an_error(thin_arch, pixel):
    with pytest.raises(ValueError, match='not in the image of 64 x 80'):
        attention_at(ConTNet(thin_arch), torch.zeros(1, 3, 64, 80), *pixel)


def test_other_networks_are_an_error():
    with pytest.raises(ValueError, match='that of ConTNet, and the backbone is .*Conv2d'):
        attention_at(torch.nn.Conv2d(3, 8, 1), torch.zeros(1, 3, 64, 64), 0, 0)


def test_the_python_of_the_page_runs(capsys):
    page = (ROOT / 'docs' / 'visualization.md').read_text()
    [block] = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    exec(block, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'torch.Size([1, 196, 196]) (56, 56, 112, 112)' and len(lines) == 4
