"""Two processes that train a network together, wrapped as MMEngine's Runner wraps it."""

import os
import signal
import time
from contextlib import contextmanager
from datetime import timedelta
from itertools import combinations
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.helpers import assert_close, build
from tests.processes import JobError, Pair

ARCH = dict(
    base_channels=8,
    depths=(1, 2, 1, 1),
    num_heads=(1, 2, 2, 4),
    feedforward_channels=(12, 16, 24, 32),
    window_sizes=((2, 4), (2, 4), (2, 4), (2, 2)),
    drop_rates=(0.0,) * 4,
    last_drop_rate=0.0,
)
SIZE = (33, 37)
ALL_OUT_INDICES = [c for n in range(1, 5) for c in combinations(range(4), n)]


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    pair = Pair(tmp_path_factory.mktemp('meeting'))
    yield pair
    pair.stop()


class Model(BaseModel):
    """A backbone with a convolution behind each map, as a neck has one."""

    def __init__(self, **options):
        super().__init__()
        self.backbone = build(ARCH, **options)
        self.neck = nn.ModuleList(nn.Conv2d(c, 3, 1) for c in self.backbone.out_channels)

    def forward(self, inputs, mode='tensor'):
        maps = [conv(m) for conv, m in zip(self.neck, self.backbone(inputs), strict=True)]
        return dict(loss=sum(m.square().sum() for m in maps)) if mode == 'loss' else maps


def wrap(model, **kwargs):
    """Wrap a model as the Runner does without a ``model_wrapper_cfg``."""
    return MMDistributedDataParallel(
        model, broadcast_buffers=False, find_unused_parameters=False, **kwargs
    )


def optimizer(model):
    return OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4))


def state(model):
    """Return the parameters as the one tensor that a pipe carries fastest."""
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def images(number, seed=0, dtype=torch.float32):
    return torch.randn(number, 3, *SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Which parameters learn ---------------------------------------------------------------------------


def train_with_all_out_indices(rank, frozen_stages, with_cp):
    results = []
    for out_indices in ALL_OUT_INDICES:
        torch.manual_seed(rank)  # the wrapper sends the weights of the first process to the other
        options = dict(frozen_stages=frozen_stages, with_cp=with_cp, out_indices=out_indices)
        model = Model(**options).train()
        wrapped, optim_wrapper = wrap(model), optimizer(model)
        before = {name: x.clone() for name, x in model.state_dict().items()}
        for step in range(2):  # an unused parameter is an error in the second step
            wrapped.train_step(dict(inputs=images(2, 10 * step + rank)), optim_wrapper)
        changed = {name for name, x in model.state_dict().items() if not x.equal(before[name])}
        results.append((changed, state(model)))
    return results


def frozen(name, frozen_stages):
    """Tell whether a tensor belongs to the stem or one of the frozen stages."""
    parts = ['stem', *(f'stages.{i}' for i in range(4))][: frozen_stages + 1]
    return name.startswith(tuple(f'backbone.{part}.' for part in parts))


@pytest.mark.filterwarnings('ignore:ConTNet trains with frozen_stages')
@pytest.mark.parametrize(
    ('frozen_stages', 'with_cp'),
    [
        (-1, False),
        (1, True),
        pytest.param(-1, True, marks=pytest.mark.slow),
        pytest.param(1, False, marks=pytest.mark.slow),
    ],
)
def test_all_that_is_not_frozen_learns_the_same_in_both_processes(pair, frozen_stages, with_cp):
    ours, theirs = pair.run(train_with_all_out_indices, frozen_stages, with_cp)
    assert len(ours) == len(ALL_OUT_INDICES) == 15
    for out_indices, mine, other in zip(ALL_OUT_INDICES, ours, theirs, strict=True):
        names = Model(out_indices=out_indices).state_dict()
        expected = {name for name in names if not frozen(name, frozen_stages)}
        assert mine[0] == other[0] == expected, out_indices
        assert (mine[1] == other[1]).all(), out_indices


# Batch norm over both -----------------------------------------------------------------------------


def stats_of(x, eps):
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, (var + eps).rsqrt()


def gather_stats(x, means, invstds, running_mean, running_var, momentum, eps, counts):
    total, counts = counts.sum(), counts[:, None]
    mean = (means * counts).sum(0) / total
    var = ((invstds**-2 - eps + (means - mean) ** 2) * counts).sum(0) / total
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * total / (total - 1), momentum)
    return mean, (var + eps).rsqrt()


def normalise(x, weight, bias, mean, invstd, eps):
    scale = (weight * invstd)[:, None, None]
    return (x - mean[:, None, None]) * scale + bias[:, None, None]


def reduce_backward(grad, x, mean, invstd, weight, *needed):
    total = grad.sum((0, 2, 3))
    with_x = (grad * (x - mean[:, None, None])).sum((0, 2, 3))
    return total, with_x, with_x * invstd, total


def normalise_backward(grad, x, mean, invstd, weight, total, with_x, counts):
    centred = (x - mean[:, None, None]) * (invstd**2 * with_x / counts.sum())[:, None, None]
    grad = grad - (total / counts.sum())[:, None, None] - centred
    return grad * (invstd * weight)[:, None, None]


@contextmanager
def sync_bn_on_a_cpu():
    """Let torch's SyncBatchNorm run here: all but its five kernels, which know GPUs alone."""
    kernels = dict(
        batch_norm_stats=stats_of,
        batch_norm_gather_stats_with_counts=gather_stats,
        batch_norm_elemt=normalise,
        batch_norm_backward_reduce=reduce_backward,
        batch_norm_backward_elemt=normalise_backward,
    )
    check = '_passing_sync_batchnorm_handle'  # of the device of the parameters
    original = nn.SyncBatchNorm.forward

    def forward(self, x):
        with patch('torch._C._get_privateuse1_backend_name', lambda: 'cpu'):  # a device it allows
            return original(self, x)

    with (
        patch.multiple(torch, **kernels),
        patch.object(DistributedDataParallel, check, lambda *_: None),
        patch.object(nn.SyncBatchNorm, 'forward', forward),
    ):
        yield


def train_once(model, wrapped, inputs):
    """Return maps, the gradients of their squares' sum, and all buffers."""
    maps = wrapped(inputs)
    sum(m.square().sum() for m in maps).backward()
    grads = [p.grad for p in model.parameters()]
    buffers = [b for b in model.backbone.buffers() if b.is_floating_point()]
    return [[x.detach() for x in part] for part in (maps, grads, buffers)]


def model_for_norms(kind, with_cp):
    torch.manual_seed(0)
    norm_cfg = dict(type=kind, requires_grad=True)
    return Model(norm_cfg=norm_cfg, with_cp=with_cp, deep_stem=True).double().train()


def train_with_sync_bn(rank, sizes, with_cp):
    model = model_for_norms('SyncBN', with_cp)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) == 8
    part = images(sum(sizes), dtype=torch.float64).split(sizes)[rank]
    with sync_bn_on_a_cpu():
        found = train_once(model, wrap(model), part)
    return [[x.numpy() for x in part] for part in found]


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('sizes', [(2, 2), (3, 1)])
def test_sync_bn_is_batch_norm_of_the_joined_batch(pair, sizes, with_cp):
    found = pair.run(train_with_sync_bn, sizes, with_cp)
    model = model_for_norms('BN', with_cp)
    maps, grads, buffers = train_once(model, model, images(sum(sizes), dtype=torch.float64))
    both = zip(found[0][0], found[1][0], strict=True)
    joined = [torch.cat([torch.from_numpy(x) for x in parts]) for parts in both]
    assert_close(joined, maps, 1e-9)
    for _, their_grads, their_buffers in found:
        # The wrapper divides the sum of both by their number.
        assert_close([2 * torch.from_numpy(x) for x in their_grads], grads, 1e-7)
        assert_close([torch.from_numpy(x) for x in their_buffers], buffers, 1e-9)


# Uneven data --------------------------------------------------------------------------------------


def train_an_epoch(rank, num_images, batch_size, round_up, together=None):
    """Train on each image once; ``together`` says how processes of unequal length go on."""
    torch.manual_seed(0)
    sampler = dict(type='DefaultSampler', shuffle=False, round_up=round_up)
    loader = Runner.build_dataloader(
        dict(
            dataset=[dict(inputs=x) for x in images(num_images)],
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=dict(type='default_collate'),
        )
    )
    model = Model().train()
    group = dist.new_group(timeout=timedelta(seconds=3)) if together == 'timeout' else None
    wrapped, optim_wrapper, sizes = wrap(model, process_group=group), optimizer(model), []

    def train():
        for batch in loader:
            sizes.append(len(batch['inputs']))
            wrapped.train_step(batch, optim_wrapper)

    start, error = time.monotonic(), None
    if together == 'join':
        with wrapped.join():
            train()
    else:
        try:
            train()
        except RuntimeError as e:
            error = str(e)
    return sizes, state(model), error, time.monotonic() - start


@pytest.mark.parametrize(
    ('num_images', 'round_up', 'together', 'expected'),
    [
        (5, True, None, [[2, 1], [2, 1]]),  # MMEngine's default: one image comes twice
        (7, False, None, [[2, 2], [2, 1]]),
        (5, False, 'join', [[2, 1], [2]]),
    ],
)
def test_an_uneven_last_batch_leaves_both_with_the_same_weights(
    pair, num_images, round_up, together, expected
):
    ours, theirs = pair.run(train_an_epoch, num_images, 2, round_up, together)
    assert [ours[0], theirs[0]] == expected
    assert ours[2] is theirs[2] is None
    assert (ours[1] == theirs[1]).all()


def test_a_process_that_gets_a_batch_more_ends_with_an_error_when_its_time_is_up(pair):
    ours, theirs = pair.run(train_an_epoch, 5, 2, False, 'timeout')
    assert (ours[0], theirs[0]) == ([2, 1], [2])
    assert theirs[2] is None
    assert 'imed out' in ours[2] and ours[3] < 20
    pair.stop()  # the group may be of no more use


# A process killed ---------------------------------------------------------------------------------


def train_until_killed(rank):
    model = Model().train()
    wrapped, optim_wrapper = wrap(model), optimizer(model)
    for step in range(1000):
        if rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        start = time.monotonic()
        try:
            wrapped.train_step(dict(inputs=images(2, step)), optim_wrapper)
        except RuntimeError as error:
            return step, str(error), time.monotonic() - start
    return None


def test_when_a_process_is_killed_the_other_ends_with_an_error(pair):
    (step, error, seconds), _ = pair.run(train_until_killed, dies=True)
    pair.stop()
    assert step == 3
    assert 'closed by peer' in error or 'Connection reset' in error
    assert seconds < 20


def fail_in_one(rank):
    if rank == 1:
        raise ValueError('only here')


def test_an_error_in_one_process_reaches_the_test(pair):
    with pytest.raises(JobError, match='(?s)process 1.*only here'):
        pair.run(fail_in_one)
