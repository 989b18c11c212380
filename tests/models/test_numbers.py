"""Numbers stay numbers: dtypes of 16 bits, images of any scale, strips of one pixel."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import amp

from tests.helpers import POSITIONS, build
from tests.numbers import MODE_PARAMS, check, make_images
from tests.tiny_runner import TinyClassifier

ARCH = dict(
    base_channels=16,
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 2, 4),
    feedforward_channels=(16, 32, 32, 48),
    window_sizes=((2, 4), (2, 4), (2, 4), (2, 2)),
    drop_rates=(0.0,) * 4,
    last_drop_rate=0.0,
)
# Maps of 17, 9, 5 and 3 columns: the last column of each is a window of its own.
SIZE = (34, 65)
CASES = {True: [('zero', 0.0), ('random', 1e-4)], False: [('random', 1e4), ('constant', 1e4)]}


@pytest.mark.parametrize('mode', MODE_PARAMS)
@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('training', [False, True])
def test_maps_and_gradients_are_finite_and_near_the_reference_in_float64(mode, position, training):
    # All kinds of images in both modes: tests/reliability/test_numbers.py.
    net = build(ARCH, position=position).train(training)
    assert all(check(net, mode, kind, scale, SIZE) for kind, scale in CASES[training])


@pytest.fixture
def amp_on_a_cpu(monkeypatch):
    """Let MMEngine's AmpOptimWrapper run here; autocast and the loss scaler are torch's own."""
    if not hasattr(torch.amp, 'GradScaler'):
        pytest.skip('the loss scaler of this torch (before 2.3) knows GPUs alone')

    @contextmanager
    def autocast(dtype=None, **kwargs):
        with torch.autocast('cpu', dtype or torch.float16):
            yield

    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    scaler = partial(torch.amp.GradScaler, device='cpu')
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', scaler)
    monkeypatch.setattr(amp, 'autocast', autocast)


def test_a_training_with_a_loss_scaler_goes_on_finite(amp_on_a_cpu):
    model = TinyClassifier(ARCH).train()
    optim_wrapper = amp_optimizer_wrapper.AmpOptimWrapper(
        loss_scale='dynamic',
        dtype='float16',
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
    )
    data = dict(inputs=make_images('random', 1e4, (33, 33)), labels=torch.tensor([0, 1]))
    steps = 0
    for _ in range(30):  # of which the scaler may skip those that are to find its scale
        before = model.head.bias.detach().clone()
        loss = model.train_step(data, optim_wrapper)['loss']
        assert torch.isfinite(torch.as_tensor(loss))
        steps += not before.equal(model.head.bias)
    assert steps >= 5
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
