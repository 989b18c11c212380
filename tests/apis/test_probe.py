"""The probe reads options off what batch norms remember, or says that it cannot tell."""

from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip('skimage')
pytest.importorskip('sklearn')

from contnet_mm import ConTNet
from contnet_mm.apis.convert import convert_file, read_network
from contnet_mm.apis.probe import probe
from contnet_mm.checkpoint.load import load_pretrained
from contnet_mm.checkpoint.options import UNTOLD
from contnet_mm.datasets.photographs import natural_crops
from tests.conftest import THIN_ARCH
from tests.helpers import run_tool

ARCH = dict(THIN_ARCH, base_channels=16)
SIZE = 112
COMBINATIONS = [*product((False, True), repeat=2)]


@pytest.fixture(scope='module')
def crops():
    return natural_crops(number=24, size=SIZE)


def make_network(values):
    """Return a network with random weights, whose batch norms have seen other crops."""
    torch.manual_seed(0)
    net = ConTNet(ARCH, **dict(zip(UNTOLD, values, strict=True)))
    for name, parameter in net.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
        elif 'encoders' in name and 'position' not in name:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(natural_crops(number=48, size=SIZE, seed=1))
    return net.eval()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """One file per combination, as a state dict alone, which records nothing."""
    folder = tmp_path_factory.mktemp('probe')
    for values in COMBINATIONS:
        torch.save(dict(make_network(values).state_dict()), folder / f'{values}.pth')
    return {values: folder / f'{values}.pth' for values in COMBINATIONS}


def ask(file, crops, **known):
    network = read_network(file)
    return probe(network.backbone, network.options, known, crops)


@pytest.mark.parametrize('values', COMBINATIONS)
def test_the_verdict_is_the_combination_that_the_norms_have_seen(tmp_path, files, crops, values):
    expected = dict(zip(UNTOLD, values, strict=True))
    found = ask(files[values], crops)
    assert found.verdict() == expected, found.report()
    assert min(found.margin(option) for option in UNTOLD) > 4
    convert_file(files[values], tmp_path / 'official.pth', 'official')
    assert ask(tmp_path / 'official.pth', crops).verdict() == expected


def test_the_converter_records_the_verdict_as_inferred(tmp_path, files, crops):
    source, target = files[True, False], tmp_path / 'ours.pth'
    lines = convert_file(source, target, 'official', crops=crops)
    assert any(line.startswith('avg_down=True (') for line in lines)
    load_pretrained(ConTNet(ARCH, avg_down=True), str(target))
    with pytest.raises(ValueError, match=r'avg_down: inferred by probe_weights .*--no-avg-down'):
        load_pretrained(ConTNet(ARCH), str(target))


def test_what_the_user_states_wins_over_the_probe(tmp_path, files, crops):
    stated = dict(avg_down=False)
    lines = convert_file(
        files[True, False], tmp_path / 'ours.pth', 'official', stated=stated, crops=crops
    )
    assert not any(line.startswith('avg_down=') for line in lines)
    assert any(line.startswith('pre_norm=False (') for line in lines)
    load_pretrained(ConTNet(ARCH), str(tmp_path / 'ours.pth'))


def test_untouched_batch_norms_cannot_tell(tmp_path, crops):
    torch.save(dict(ConTNet(ARCH).state_dict()), tmp_path / 'new.pth')
    found = ask(tmp_path / 'new.pth', crops)
    assert not found.verdict()
    (line,) = found.report()
    assert line.startswith('cannot tell avg_down, pre_norm: stages.0.0.norm remembers nothing')


def test_memories_of_another_network_cannot_tell(tmp_path, crops):
    net = make_network((False, False))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn_like(module.running_mean))
            module.running_var.copy_(torch.rand_like(module.running_var) + 0.1)
    torch.save(dict(net.state_dict()), tmp_path / 'odd.pth')
    found = ask(tmp_path / 'odd.pth', crops)
    assert not found.verdict()
    assert 'no combination fits' in found.report()[-1]


def test_a_known_option_is_not_asked_for(files, crops):
    found = ask(files[False, True], crops, avg_down=True)
    assert set(found.positions) == {'pre_norm'} and len(found.distances) == 2


def test_the_script_prints_table_and_verdict(files):
    result = run_tool('probe_weights', files[True, False], '--size', SIZE, '--crops', 24)
    assert result.returncode == 0, result.stderr
    assert 'avg_down=True (' in result.stdout and 'pre_norm=False (' in result.stdout
    assert result.stdout.count('\nTrue ') == result.stdout.count('\nFalse ') == 2


def test_crops_of_a_folder_are_of_its_images_alone(tmp_path):
    with pytest.raises(ValueError, match='holds no file that ends in one of'):
        natural_crops(tmp_path)
    Image.fromarray(np.full((50, 70, 3), 255, np.uint8)).save(tmp_path / 'white.png')
    crops = natural_crops(tmp_path, number=3, size=32)
    assert crops.shape == (3, 3, 32, 32)
    white = (255 - torch.tensor((123.675, 116.28, 103.53))) / torch.tensor((58.395, 57.12, 57.375))
    assert torch.allclose(crops, white.view(3, 1, 1).expand_as(crops))
    (tmp_path / 'white.png').write_text('no image')
    with pytest.raises(ValueError, match=r'white\.png is no image that can be read'):
        natural_crops(tmp_path, number=1)
