"""The reference implementation has the maps, gradients and recorded numbers of ConTNet."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from contnet_mm import ConTNet
from contnet_mm.checkpoint.official_keys import convert_official
from contnet_mm.models.plain import PlainConTNet
from tests.helpers import difference
from tests.official import PARITY, backbone_options, official_state_dict, read_meta

TOLERANCE = 1e-4
OPTIONS = [
    {},
    dict(position='relative'),
    dict(pre_norm=True),
    dict(avg_down=True),
    dict(deep_stem=True),
    dict(position='relative', pre_norm=True, qkv_bias=False, avg_down=True, deep_stem=True),
]


def make_pair(arch, **options):
    """Build both networks with the same weights, none of which is as initialised."""
    ours, plain = ConTNet(arch, **options), PlainConTNet(arch, **options)
    for tensor in ours.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand_like(tensor)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_eval_maps_are_those_of_contnet(thin_arch, options):
    ours, plain = (net.eval() for net in make_pair(thin_arch, **options))
    x = torch.randn(2, 3, 224, 448 if not options else 224)
    with torch.inference_mode():
        for found, expected in zip(plain(x), ours(x), strict=True):
            assert found.shape == expected.shape
            assert difference(found, expected) <= TOLERANCE


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_training_step_is_that_of_contnet(thin_arch, options):
    # In float32 a sum in another order can flip a ReLU near zero.
    ours, plain = (net.double().train() for net in make_pair(thin_arch, **options))
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    losses = [sum(y.square().mean() for y in net(x)) for net in (ours, plain)]
    for loss in losses:
        loss.backward()
    assert difference(*losses) <= TOLERANCE
    expected = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in plain.named_parameters():
        assert difference(parameter.grad, expected[name]) <= TOLERANCE, name
    buffers = dict(ours.named_buffers())
    for name, buffer in plain.named_buffers():
        if name.endswith('running_mean'):
            assert difference(buffer, buffers[name]) <= TOLERANCE, name


def test_every_dropout_drops_in_training_alone(thin_arch):
    arch = dict(thin_arch, drop_rates=(0.0, 0.0, 0.0, 0.3), last_drop_rate=0.2)
    plain, called = PlainConTNet(arch), []
    dropouts = [m for m in plain.stages[3].modules() if isinstance(m, torch.nn.Dropout)]
    # Two blocks of two encoders with four each, and that of the output.
    assert sorted(m.p for m in dropouts) == [0.2] + [0.3] * 16
    for module in dropouts:
        module.register_forward_hook(lambda module, args, output: called.append(module))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        first = plain(x)
        assert set(called) == set(dropouts) and len(called) == len(dropouts)
        second = plain(x)
        assert torch.equal(first[2], second[2]) and not torch.equal(first[3], second[3])
        assert torch.equal(plain.eval()(x)[3], plain(x)[3])


@pytest.mark.parametrize('path', PARITY, ids=lambda path: path.stem)
def test_maps_are_the_recorded_ones(path):
    meta = read_meta(path)
    net = PlainConTNet(**backbone_options(meta))
    official = official_state_dict(meta)
    fc = {key[3:]: official.pop(key) for key in ('fc.weight', 'fc.bias')}
    state_dict = convert_official(official)
    missing = set(net.state_dict()) - set(state_dict)
    assert all(key.endswith('num_batches_tracked') for key in missing)
    net.load_state_dict(state_dict, strict=False)
    assert set(state_dict) <= set(net.state_dict())
    names = ['layer1_ste2', 'layer2_ste2', 'layer3_ste2', 'layer4']
    with np.load(path) as recorded, torch.inference_mode():
        for height, width in ((224, 224), (224, 448)):
            images = np.random.RandomState(height * 10007 + width)
            x = torch.from_numpy(images.standard_normal((2, 3, height, width)).astype(np.float32))
            maps = net.eval()(x)
            prefix = f'{height}x{width}/eval'
            for found, name in zip(maps, names, strict=True):
                assert [*found.shape] == [*recorded[f'{prefix}/{name}/shape']]
                corner = torch.from_numpy(recorded[f'{prefix}/{name}/corner'])
                assert difference(found[:, :8, :5, :5], corner) <= TOLERANCE
                end = torch.from_numpy(recorded[f'{prefix}/{name}/end'])
                assert difference(found[:, -8:, -5:, -5:], end) <= TOLERANCE
        x = np.random.RandomState(7).standard_normal((2, 3, 224, 224)).astype(np.float32)
        logits = F.linear(net.train()(torch.from_numpy(x))[-1].mean((2, 3)), **fc)
        for found, name in ((logits, 'logits'), (logits.square().mean(), 'loss')):
            expected = torch.as_tensor(recorded[f'train/{name}'])
            assert difference(found, expected) <= TOLERANCE


def test_another_size_is_the_padded_image_with_the_padding_cut_off(thin_arch):
    net = PlainConTNet(thin_arch).eval()
    x = torch.randn(1, 3, 100, 230)
    with torch.inference_mode():
        maps = net(x)
        padded = net(F.pad(x, (0, 448 - 230, 0, 224 - 100)))
    assert [tuple(y.shape[2:]) for y in maps] == [(25, 58), (13, 29), (7, 15), (4, 8)]
    for found, whole in zip(maps, padded, strict=True):
        assert torch.equal(found, whole[:, :, : found.shape[2], : found.shape[3]])


@pytest.mark.parametrize('arch', ['tiny', 'small', 'medium', 'base'])
def test_parameters_have_the_names_and_shapes_of_contnet(arch):
    ours, plain = ConTNet(arch).state_dict(), PlainConTNet(arch).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in plain.items()}
