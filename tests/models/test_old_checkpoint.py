"""Checkpoints made before the forward pass was rewritten, by commit 9bd6fe1."""

from pathlib import Path

import pytest
import torch

from contnet_mm import ConTNet
from tests.helpers import POSITIONS, assert_close

FILE = Path(__file__).parent / 'checkpoint_9bd6fe1.pth'


@pytest.mark.parametrize('position', POSITIONS)
def test_a_checkpoint_of_an_earlier_commit_loads_and_gives_its_maps(position):
    saved = torch.load(FILE, weights_only=True)[position]
    net = ConTNet(saved['arch'], position=position, feature_location='encoder').eval()
    assert list(net.state_dict()) == list(saved['state_dict'])
    net.load_state_dict(saved['state_dict'], strict=True)
    images = torch.linspace(-1, 1, 3 * 61 * 83).sin().view(1, 3, 61, 83)
    with torch.no_grad():
        assert_close(net(images), saved['maps'])
