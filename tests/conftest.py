"""Fixtures shared by the tests, such as a fixed seed and a thin backbone."""

import functools
import logging
import os
import subprocess

import mmengine.config.utils
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

if torch.cuda.is_available():  # comparisons are about the network, not about TF32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True

# Processes that tests start shall not take the other's core either.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# Thin networks lose more to threads than they gain, most of all on a busy machine.
torch.set_num_threads(1)

# Each time a config inherits from one of MMDetection, MMEngine reads its hundred metafiles.
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)

THIN_ARCH = dict(
    base_channels=8,
    depths=(1, 2, 1, 2),
    num_heads=(1, 2, 2, 4),
    feedforward_channels=(12, 16, 24, 32),
    window_sizes=((7, 14), (7, 14), (7, 14), (7, 7)),
    drop_rates=(0.0, 0.0, 0.0, 0.0),
    last_drop_rate=0.0,
)


def pytest_collection_modifyitems(items):
    """Skip what needs mmcv's compiled operations where torchvision computes them."""
    from contnet_mm.apis import mmcv_ops

    marked = [item for item in items if item.get_closest_marker('mmcv_ops')]
    if not marked or mmcv_ops.find_ops() == mmcv_ops.COMPILED:
        return
    reason = 'needs the compiled operations of mmcv: make test OPS=mmcv'
    for item in marked:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def nothing_stays(monkeypatch, tmp_path):
    """Undo what inferencers and scripts set for good; work in an empty folder."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', DefaultScope._instance_dict.copy())
    monkeypatch.setattr('mmengine.logging.MMLogger.setLevel', lambda *_: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def thin_arch():
    """An arch that keeps the shape of the real ones and runs in milliseconds."""
    return dict(THIN_ARCH)


@pytest.fixture
def log(caplog):
    """What is logged, as text."""
    logger = MMLogger.get_current_instance()  # perhaps that of a Runner in another test
    level = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    yield lambda: caplog.text
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of half a megabyte."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=512k', 'contnet_mm_test', str(folder)]
    try:
        result = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip('there is no command mount')
    if result.returncode:
        pytest.skip(f'a file system cannot be mounted here: {result.stderr.strip()}')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)
