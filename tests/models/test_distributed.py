"""Two processes that train a network together, wrapped as MMEngine's Runner wraps it."""

from itertools import combinations

import pytest
import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from tests.helpers import build
from tests.processes import Pair

ARCH = dict(
    base_channels=8,
    depths=(1, 2, 1, 1),
    num_heads=(1, 2, 2, 4),
    feedforward_channels=(12, 16, 24, 32),
    window_sizes=((2, 4), (2, 4), (2, 4), (2, 2)),
    drop_rates=(0.0,) * 4,
    last_drop_rate=0.0,
)
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


def train(model, batches):
    """Train as the Runner does by default; return what changes, and all parameters."""
    wrapped = MMDistributedDataParallel(
        model.train(), broadcast_buffers=False, find_unused_parameters=False
    )
    before = {name: x.clone() for name, x in model.state_dict().items()}
    optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4))
    for batch in batches:  # an unused parameter is an error in the second step
        wrapped.train_step(batch, optim_wrapper)
    changed = {name for name, x in model.state_dict().items() if not x.equal(before[name])}
    return changed, torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def images(number, seed):
    return torch.randn(number, 3, 33, 37, generator=torch.Generator().manual_seed(seed))


def train_with_all_out_indices(rank, options):
    results = []
    for out_indices in ALL_OUT_INDICES:
        torch.manual_seed(rank)  # the wrapper sends the weights of the first process to the other
        batches = [dict(inputs=images(2, 10 * step + rank)) for step in range(2)]
        results.append(train(Model(out_indices=out_indices, **options), batches))
    return results


@pytest.mark.filterwarnings('ignore:ConTNet trains with frozen_stages')
@pytest.mark.parametrize(
    ('options', 'frozen'),
    [
        (dict(feature_location='block', frozen_stages=1, with_cp=True), ('stem.', 'stages.0.')),
        (dict(feature_location='encoder'), ()),
    ],
    ids=['block', 'encoder'],
)
def test_all_that_is_not_frozen_learns_the_same_in_both_processes(pair, options, frozen):
    frozen = tuple(f'backbone.{part}' for part in frozen)
    ours, theirs = pair.run(train_with_all_out_indices, options)
    assert len(ours) == len(ALL_OUT_INDICES) == 15
    for out_indices, mine, other in zip(ALL_OUT_INDICES, ours, theirs, strict=True):
        names = Model(out_indices=out_indices, **options).state_dict()
        expected = {name for name in names if not name.startswith(frozen)}
        assert mine[0] == other[0] == expected, out_indices
        assert (mine[1] == other[1]).all(), out_indices


def train_an_epoch(rank):
    torch.manual_seed(0)
    loader = Runner.build_dataloader(
        dict(
            dataset=[dict(inputs=x) for x in images(7, 0)],
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
            collate_fn=dict(type='default_collate'),
        )
    )
    batches = [*loader]
    return [len(batch['inputs']) for batch in batches], train(Model(), batches)


def test_an_uneven_last_batch_leaves_both_with_the_same_weights(pair):
    (sizes, (_, ours)), (their_sizes, (_, theirs)) = pair.run(train_an_epoch)
    assert (sizes, their_sizes) == ([2, 2], [2, 1])
    assert (ours == theirs).all()
