"""What the benchmark measures: the networks, an iteration, its memory; no time is asserted."""

import pytest
import torch

from contnet_mm.benchmark.measure import MAX_REASON, Step, measure_peak, reason_of
from contnet_mm.benchmark.networks import CHANNELS_LAST, Setting, build_network, list_settings
from contnet_mm.benchmark.plan import NETWORKS, Case, Size

SMALL = Size(1, 64, 64)
OURS = Setting('contnet_mm')


def make_step(size=SMALL, pass_name='inference', dtype='float32'):
    return Step(Case('contnet-ti', 'eager', dtype, size, pass_name, 'cpu'), OURS)


def test_reason_is_one_line_without_folders():
    error = RuntimeError('cannot build\n\ng++ /home/me/a.cpp\n/home/me/b.cpp:1: error: no type')
    assert reason_of(error) == 'RuntimeError: cannot build: b.cpp:1: error: no type'
    assert len(reason_of(ValueError('x' * 1000))) == MAX_REASON
    assert reason_of(MemoryError()) == 'MemoryError'


def test_every_rival_is_tried_in_both_memory_formats_and_with_both_libraries():
    assert [str(setting) for setting in list_settings('resnet50', timm=False)] == [
        'torchvision, contiguous',
        'torchvision, channels_last',
    ]
    swin = list_settings('swin-t', timm=True)
    assert {s.fused_attention for s in swin if s.source == 'timm'} == {True, False}
    assert len(swin) == len(set(swin)) == 6
    with pytest.raises(ValueError, match="'resnet18'"):
        list_settings('resnet18')


WIDTHS = {
    'ti': (96, 192, 384, 768),
    'encoder': (64, 128, 256, 1024),
    'resnet50': (256, 512, 1024, 2048),
    'swin': (96, 192, 384, 768),
    'convnext': (96, 192, 384, 768),
}


@pytest.mark.parametrize('network', NETWORKS)
def test_every_network_gives_four_maps_at_strides_4_to_32(network):
    for setting in list_settings(network):
        net = build_network(network, setting, SMALL).eval()
        maps = net(torch.zeros(1, 3, 64, 64))
        assert [tuple(y.shape[2:]) for y in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
        widths = WIDTHS.get(network.split('-')[-1]) or WIDTHS.get(network.split('-')[0])
        assert widths is None or tuple(y.shape[1] for y in maps) == widths
        sum(y.mean() for y in maps).backward()  # nothing is frozen, nothing left over
        assert all(parameter.grad is not None for parameter in net.parameters())


def test_settings_of_a_network_reach_it():
    relative = build_network('contnet-m-relative', OURS, SMALL)
    assert any(name.endswith('position.table') for name, _ in relative.named_parameters())
    assert build_network('contnet-m-cp', OURS, SMALL).stages[0][0].with_cp
    net = build_network('resnet50', Setting('torchvision', CHANNELS_LAST), SMALL)
    weight = next(p for p in net.parameters() if p.dim() == 4 and p.shape[2] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ('pass_name', 'dtype'),
    [
        ('inference', 'float32'),
        ('inference', 'bfloat16'),
        ('inference', 'bfloat16-pure'),
        ('training', 'float32'),
        ('training', 'bfloat16'),
    ],
)
def test_a_step_runs_in_its_dtype_and_leaves_no_gradients(pass_name, dtype):
    step = make_step(SMALL, pass_name, dtype)
    seen, gradients = [], []
    step.net.stages[0][0].conv.register_forward_hook(
        lambda module, args, output: seen.append((output.dtype, output.requires_grad))
    )
    for parameter in step.net.parameters():
        parameter.register_hook(lambda gradient: gradients.append(gradient.abs().sum()))
    assert step.time(2) > 0
    training = pass_name == 'training'
    expected = torch.float32 if dtype == 'float32' else torch.bfloat16
    assert seen == [(expected, training)] * 2 and step.net.training == training
    assert len(gradients) == 2 * training * len([*step.net.parameters()])
    assert all(parameter.grad is None for parameter in step.net.parameters())


def test_memory_of_training_is_more_than_that_of_inference():
    size = Size(2, 96, 96)
    inference, training = (
        measure_peak(make_step(size, name)) for name in ('inference', 'training')
    )
    # Its gradients alone are 4 bytes for each parameter of the backbone, 5.1 million.
    assert 1 < inference < 20 < training < 300


def test_memory_of_what_ran_before_does_not_count():
    step = make_step()
    torch.ones(10**8)
    assert 0 < step.cpu_peak() < 100


def test_memory_that_cannot_be_measured_has_a_reason():
    step = make_step()
    step.case = Case('contnet-ti', 'eager', 'float32', Size(1, 16, 16), 'inference', 'cpu')
    with pytest.raises(RuntimeError, match='at least 32'):
        measure_peak(step)
