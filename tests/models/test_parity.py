"""The numbers of the official network: eval, training step, gradients, running statistics."""

import copy

import numpy as np
import pytest
import torch

from contnet_mm import ConTNet
from contnet_mm.checkpoint.official_keys import convert_official
from tests.official import PARITY, backbone_options, official_state_dict, read_meta

TOLERANCE = 1e-4
DIFFERENCES = []  # of the file at hand; `pytest -s` shows the largest


def difference(ours, theirs):
    """Largest difference, relative to the largest value."""
    theirs = np.asarray(theirs, dtype=np.float64)
    value = float(np.abs(ours.detach().double().numpy() - theirs).max() / np.abs(theirs).max())
    DIFFERENCES.append(value)
    return value


@pytest.fixture(scope='module', params=PARITY, ids=lambda path: path.stem)
def case(request, tmp_path_factory):
    meta = read_meta(request.param)
    state_dict = official_state_dict(meta)
    checkpoint = tmp_path_factory.mktemp('official') / 'checkpoint.pth'
    torch.save({'model': {f'module.{k}': v for k, v in state_dict.items()}, 'epoch': 3}, checkpoint)
    net = ConTNet(
        **backbone_options(meta),
        feature_location='encoder',
        init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)),
    )
    net.init_weights()
    fc = torch.nn.Linear(net.out_channels[-1], 1000)
    fc.load_state_dict({k[3:]: v for k, v in state_dict.items() if k.startswith('fc.')})
    with np.load(request.param) as file:
        recorded = {key: file[key] for key in file.files if key != 'meta'}
    DIFFERENCES.clear()
    yield meta, recorded, net, fc
    print(f'\n{request.param.name}: largest relative difference {max(DIFFERENCES, default=0):.1e}')


def record(net, fc, x):
    """Run the network; return the logits and the tensors inside under their official names."""
    tensors = {}

    def keep_stem(module, args, output):
        tensors['stem'] = output

    def keep_stage(stage):
        def keep_output(module, args, output):
            tensors[f'layer{stage}'] = output[0]

        def keep_encoded(module, args):
            tensors[f'layer{stage}_ste2'] = args[0]

        return keep_output, keep_encoded

    handles = [net.stem.register_forward_hook(keep_stem)]
    for i, stage in enumerate(net.stages, 1):
        keep_output, keep_encoded = keep_stage(i)
        handles.append(stage[-1].register_forward_hook(keep_output))
        handles.append(stage[-1].conv.register_forward_pre_hook(keep_encoded))
    maps = net(x)
    for handle in handles:
        handle.remove()
    return fc(maps[-1].mean((2, 3))), maps, tensors


def test_parameter_count_is_the_official_one(case):
    meta, _, net, fc = case
    count = sum(p.numel() for module in (net, fc) for p in module.parameters())
    assert count == meta['num_parameters']


@pytest.mark.parametrize('height, width', [(224, 224), (224, 448)])
def test_eval_features_and_logits_are_the_official_ones(case, height, width):
    _, recorded, net, fc = case
    x = np.random.RandomState(height * 10007 + width).standard_normal((2, 3, height, width))
    net.eval()
    with torch.inference_mode():
        logits, maps, tensors = record(net, fc, torch.from_numpy(x.astype(np.float32)))
    prefix = f'{height}x{width}/eval'
    assert difference(logits, recorded[f'{prefix}/logits']) <= TOLERANCE
    assert len(tensors) == 9
    for name, tensor in tensors.items():
        check(tensor, recorded, f'{prefix}/{name}')
    for ours, name in zip(
        maps, ['layer1_ste2', 'layer2_ste2', 'layer3_ste2', 'layer4'], strict=True
    ):
        assert torch.equal(ours, tensors[name])


@pytest.mark.parametrize('height, width', [(224, 224), (224, 448)])
def test_every_second_row_and_column_of_a_block_map_is_the_official_stage_output(
    case, height, width
):
    meta, recorded, net, _ = case
    if meta['options']['use_avgdown']:
        pytest.skip('average pooling of the shortcut reads all rows and columns')
    x = np.random.RandomState(height * 10007 + width).standard_normal((2, 3, height, width))
    twin = ConTNet(**backbone_options(meta)).eval()
    twin.load_state_dict(net.state_dict())
    with torch.inference_mode():
        maps = twin(torch.from_numpy(x.astype(np.float32)))
    for stage, dense in enumerate(maps[:3], 1):
        check(dense[:, :, ::2, ::2], recorded, f'{height}x{width}/eval/layer{stage}')
    check(maps[3], recorded, f'{height}x{width}/eval/layer4')


def check(tensor, recorded, name):
    assert tuple(tensor.shape) == tuple(recorded[f'{name}/shape'])
    views = dict(
        corner=tensor[:, :8, :5, :5],
        end=tensor[:, -8:, -5:, -5:],
        channel_mean=tensor.mean((0, 2, 3)),
    )
    for view, value in views.items():
        assert difference(value, recorded[f'{name}/{view}']) <= TOLERANCE, (name, view)


@pytest.fixture
def two_threads():
    """The sums of one thread round differently, by enough to flip a ReLU near zero."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_training_step_is_the_official_one(case, dtype, two_threads):
    meta, recorded, *modules = case
    net, fc = (copy.deepcopy(module).to(dtype).train() for module in modules)
    x = np.random.RandomState(7).standard_normal((2, 3, 224, 224)).astype(np.float32)
    x = torch.from_numpy(x).to(dtype).requires_grad_()
    logits, _, _ = record(net, fc, x)
    loss = logits.square().mean()
    loss.backward()
    assert difference(logits, recorded['train/logits']) <= TOLERANCE
    assert difference(loss, recorded['train/loss']) <= TOLERANCE
    norms = x.grad.square().sum((2, 3)).sqrt()
    assert difference(norms, recorded['train/input_grad_channel_norm']) <= TOLERANCE
    check_norms(net, fc, meta)


def check_norms(net, fc, meta):
    """Compare gradient norms, parameter by parameter, and the norms of the running means."""
    parameters = dict(net.named_parameters())
    parameters.update({f'fc.{name}': parameter for name, parameter in fc.named_parameters()})
    assert len(meta['grad_norm']) == len(parameters)
    for key, norm in meta['grad_norm'].items():
        ours = parameters[key if key.startswith('fc.') else our_name(key)]
        assert difference(ours.grad.norm(), norm) <= TOLERANCE, key
    buffers = dict(net.named_buffers())
    for key, norm in meta['running_mean_norm'].items():
        assert difference(buffers[our_name(key)].norm(), norm) <= TOLERANCE, key


def our_name(key):
    return next(iter(convert_official({key: torch.zeros(1)})))
