"""The network read off its description, one window at a time, on the real tokens only.

Nothing is padded or masked here and no windowing code is shared with the package, so that agreement
means something.
"""

import torch
import torch.nn.functional as F


def reference_maps(net, x):
    """Return the maps of a ConTNet without dropout, in the mode that it is in."""
    x, maps = _stem(net.stem, x), []
    strides = [*net.strides[1:], 1]
    for i, stage in enumerate(net.stages):
        for block in stage:
            is_last = block is stage[-1]
            x, encoded, dense = _block(block, x, strides[i] if is_last else 1)
        inner = net.feature_location == 'encoder' and i < 3
        maps.append(encoded if inner else dense)
    return [maps[i] for i in net.out_indices]


def _block(block, x, stride):
    """Return the output, the map of the second encoder, and the output as it were at stride 1."""
    y = F.relu(block.norm(x))
    r = y
    for encoder in block.encoders:
        r = encode_map(encoder, r)
    if block.conv is None:
        return None, r, None
    return _add_shortcut(block, x, y, r, stride), r, _add_shortcut(block, x, y, r, 1)


def _add_shortcut(block, x, y, r, stride):
    dilation, weight = block.conv.dilation, block.conv.weight
    padding = dilation[0] * (weight.shape[2] // 2)
    out = F.conv2d(r, weight, stride=stride, padding=padding, dilation=dilation)
    if block.downsample is None:
        return out + x
    if not block.avg_down:
        return out + F.conv2d(y, block.downsample.weight, stride=stride)
    # Average pooling of whatever pixels there are in each field.
    rows = [y[:, :, i : i + stride].mean(2) for i in range(0, y.shape[2], stride)]
    y = torch.stack(rows, 2)
    columns = [y[..., i : i + stride].mean(3) for i in range(0, y.shape[3], stride)]
    return out + F.conv2d(torch.stack(columns, 3), block.downsample.weight)


def _stem(stem, x):
    if hasattr(stem, 'conv'):
        x = F.conv2d(x, stem.conv.weight, stride=2, padding=3)
    else:
        for conv, norm, stride in zip(
            (stem.conv1, stem.conv2, stem.conv3),
            (stem.norm1, stem.norm2, stem.norm3),
            (2, 1, 1),
            strict=True,
        ):
            x = F.relu(norm(F.conv2d(x, conv.weight, stride=stride, padding=1)))
    return F.max_pool2d(x, 3, stride=2, padding=1)


def encode_map(encoder, x):
    p = encoder.window_size
    out = torch.empty_like(x)
    for top in range(0, x.shape[2], p):
        for left in range(0, x.shape[3], p):
            window = x[:, :, top : top + p, left : left + p]
            h, w = window.shape[2:]
            tokens = window.flatten(2).transpose(1, 2)
            tokens = _encode_window(encoder, tokens, h, w)
            out[:, :, top : top + p, left : left + p] = tokens.transpose(1, 2).unflatten(2, (h, w))
    return out


def _encode_window(encoder, x, h, w):
    if encoder.position is not None:
        place = torch.arange(h * w)
        rows, columns = encoder.position.rows[place // w], encoder.position.columns[place % w]
        x = x + torch.cat([rows, columns], dim=1)
    if encoder.pre_norm:
        x = x + _attention(encoder, encoder.norm1(x), h, w)
        return x + _feed_forward(encoder.ffn, encoder.norm2(x))
    x = encoder.norm1(x + _attention(encoder, x, h, w))
    return encoder.norm2(x + _feed_forward(encoder.ffn, x))


def _feed_forward(ffn, x):
    return ffn.fc2(F.gelu(ffn.fc1(x)))


def _attention(encoder, x, h, w):
    attn, p = encoder.attn, encoder.window_size
    channels = x.shape[2]
    width = channels // attn.num_heads
    q, k, v = attn.qkv(x).split(channels, dim=-1)
    heads = []
    for head in range(attn.num_heads):
        part = slice(head * width, (head + 1) * width)
        logits = q[..., part] * width**-0.5 @ k[..., part].transpose(1, 2)
        if attn.position is not None:
            place = torch.arange(h * w)
            dh = (place // w)[:, None] - (place // w)[None]  # query minus key
            dw = (place % w)[:, None] - (place % w)[None]
            logits = logits + attn.position.table[(dh + p - 1) * (2 * p - 1) + dw + p - 1, head]
        heads.append(logits.softmax(-1) @ v[..., part])
    return attn.proj(torch.cat(heads, dim=-1))
