"""The hook that ends a training whose numbers overflowed."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from contnet_mm.engine.check_finite import CheckFiniteHook, Watch
from tests.helpers import build
from tests.tiny_runner import train_briefly

HOOK = dict(type='contnet_mm.CheckFiniteHook', interval=1)


class Spoil(Hook):
    """Write an infinity into a tensor of the model after the first iteration."""

    priority = 'VERY_HIGH'  # before the check

    def __init__(self, name):
        self.name = name

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        dict(runner.model.state_dict(keep_vars=True))[self.name].data.view(-1)[0] = float('inf')


@pytest.fixture
def train(thin_arch, tmp_path, nothing_stays):
    def train(*hooks, **options):
        train_briefly(tmp_path / 'run', thin_arch, options.items(), custom_hooks=list(hooks))

    return train


def test_a_healthy_training_goes_on(train):
    train(HOOK)


@pytest.mark.parametrize('interval', [1, 2])
def test_a_statistic_that_is_not_finite_is_named(train, interval):
    name = 'backbone.stages.1.0.norm.running_var'
    message = f'after {interval} iterations in .*1 running statistics, the first {name}'
    with pytest.raises(FloatingPointError, match=message):
        train(Spoil(name), dict(HOOK, interval=interval))


def test_the_first_module_whose_result_is_not_finite_is_named(train, monkeypatch):
    forward = torch.nn.BatchNorm2d.forward

    def overflow(self, x):
        return forward(self, x) * (float('inf') if self.num_features == 16 else 1)

    monkeypatch.setattr(torch.nn.BatchNorm2d, 'forward', overflow)
    with pytest.raises(FloatingPointError, match='after 1 iterations in .*losses, the') as error:
        train(HOOK)
    assert 'results of modules, the first backbone.stages.1.0.norm;' in str(error.value)


@pytest.mark.parametrize('before', ['before_val', 'before_test'])
def test_validation_and_test_begin_with_a_check(thin_arch, before):
    runner = type('Runner', (), dict(model=build(thin_arch), iter=3))()
    getattr(CheckFiniteHook(), before)(runner)
    runner.model.stem.conv.weight.data[0] = float('nan')
    with pytest.raises(FloatingPointError, match='1 parameters, the first stem.conv.weight'):
        getattr(CheckFiniteHook(), before)(runner)


def test_modules_are_left_without_hooks(thin_arch):
    net = build(thin_arch)
    watch = Watch(net)
    net(torch.full((1, 3, 32, 32), float('inf')))
    assert watch.finish()[0] == 'stem.conv'
    assert not any(module._forward_hooks for module in net.modules())


def test_the_hook_is_found_by_its_type_and_wants_a_positive_interval():
    assert isinstance(HOOKS.build(HOOK), CheckFiniteHook)
    with pytest.raises(ValueError, match='interval must be at least 1, got 0'):
        CheckFiniteHook(interval=0)
