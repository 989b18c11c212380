"""Attention weights that a hook computes again are those of a plain softmax per window."""

import re

import pytest
import torch
import torch.nn.functional as F

from contnet_mm import ConTNet
from contnet_mm.visualization.attention import AttentionInWindow, attention_at
from tests.helpers import POSITIONS, ROOT, build, difference
from tests.reference import encode_map

SIZE = (150, 118)  # windows at both borders of each stage are cut


def softmax_in_window(encoder, x, row, column):
    """Return the weights of the window around a token of a map, and its tokens row by row."""
    p, attn = encoder.window_size, encoder.attn
    top, left = row // p * p, column // p * p
    window = x[0, :, top : top + p, left : left + p]
    rows, columns = torch.ones(window.shape[1:]).nonzero().T
    tokens = window.flatten(1).T
    if encoder.position is not None:
        tokens = tokens + torch.cat(
            [encoder.position.rows[rows], encoder.position.columns[columns]], 1
        )
    q, k, _ = attn.qkv(tokens).unflatten(1, (3, attn.num_heads, -1)).permute(1, 2, 0, 3)
    logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if attn.position is not None:
        down, right = rows[:, None] - rows + p - 1, columns[:, None] - columns + p - 1
        logits = logits + attn.position.table[down * (2 * p - 1) + right].permute(2, 0, 1)
    return logits.softmax(-1), torch.stack([rows + top, columns + left], 1)


@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('pixel', [(0, 0), (149, 117), (80, 100)])
def test_weights_are_a_softmax_over_the_real_tokens_of_a_window(thin_arch, position, pixel):
    net, image = build(thin_arch, position=position, with_cp=True), torch.randn(1, 3, *SIZE)
    maps = []
    handles = [
        blocks[-1].register_forward_pre_hook(lambda block, args: maps.append(args[0]))
        for blocks in net.stages
    ]
    pairs = attention_at(net, image, *pixel)
    for handle in handles:
        handle.remove()
    assert not any(module._forward_pre_hooks for module in net.modules())
    with torch.no_grad():
        for blocks, x, pair in zip(net.stages, maps, pairs, strict=True):
            x = F.relu(blocks[-1].norm(x))
            for encoder, window in zip(blocks[-1].encoders, pair, strict=True):
                place = [length // window.stride for length in pixel]
                weights, tokens = softmax_in_window(encoder, x, *place)
                order = (window.tokens @ torch.tensor([1000, 1])).argsort()
                assert torch.equal(window.tokens[order], tokens)
                assert window.tokens[window.query].tolist() == place
                assert difference(window.weights[:, order][..., order], weights) < 1e-5
                x = encode_map(encoder, x)


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


def test_the_map_of_a_query_has_its_weights_where_their_tokens_are():
    tokens = torch.tensor([[1, 2], [1, 1], [2, 2], [2, 1]])
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.0, 0.5, 0.0]])
    window = AttentionInWindow(weights[:, None].expand(2, 4, 4), tokens, 2, 8)
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
