"""Published files hold the weights and little else, and their name tells their content."""

import datetime
import hashlib
import json
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import load_checkpoint

from contnet_mm.apis.publish import check_published, publish_checkpoint, select_meta
from contnet_mm.checkpoint.read import read_checkpoint
from tests.conftest import THIN_ARCH
from tests.helpers import RunsCode, run_tool
from tests.tiny_runner import TinyClassifier, train_briefly

DAY = datetime.date(2026, 1, 31)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Saved by a real Runner."""
    return train_briefly(tmp_path_factory.mktemp('trained'), dict(THIN_ARCH))


def save(path, **changes):
    content = dict(
        meta=dict(epoch=2, iter=10, cfg='data_root = "/home/somebody"', seed=1),
        state_dict=OrderedDict(weight=torch.arange(6.0).view(2, 3), count=torch.tensor(3)),
        optimizer=dict(state={0: torch.zeros(1000)}),
        param_schedulers=[],
        message_hub={},
    )
    torch.save({**content, **changes}, path)
    return path


def test_a_runners_checkpoint_becomes_small_and_plain(tmp_path, trained):
    path, lines = publish_checkpoint(trained, tmp_path / 'tiny_8xb32_in1k', day=DAY)
    assert path.stat().st_size < trained.stat().st_size / 2
    content, before = torch.load(path, weights_only=True), read_checkpoint(trained)
    assert set(content) == {'state_dict', 'meta'}
    assert list(content['state_dict']) == list(before['state_dict'])
    for key, value in before['state_dict'].items():
        assert torch.equal(content['state_dict'][key], value)
    assert content['meta']['config'] == 'tiny_8xb32_in1k'
    assert (content['meta']['epoch'], content['meta']['iter']) == (1, 2)
    assert 'cfg' not in content['meta'] and 'experiment_name' not in content['meta']
    assert "'optimizer'" in lines[1] and 'cfg' in lines[1]


def test_mmengine_loads_the_published_file_strictly(tmp_path, trained):
    path, _ = publish_checkpoint(trained, tmp_path / 'tiny')
    model = TinyClassifier(dict(THIN_ARCH))
    content = load_checkpoint(model, str(path), strict=True)
    assert content['meta']['config'] == 'tiny'
    for key, value in read_checkpoint(trained)['state_dict'].items():
        assert torch.equal(model.state_dict()[key], value)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_the_name_tells_day_and_content(tmp_path, suffix):
    if suffix == '.safetensors':
        pytest.importorskip('safetensors')
    path, _ = publish_checkpoint(save(tmp_path / 'a.pth'), tmp_path / 'name', suffix, DAY)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert path.name == f'name_20260131-{digest}{suffix}'
    assert check_published(path) == digest


def test_without_a_day_it_is_today(tmp_path):
    path, _ = publish_checkpoint(save(tmp_path / 'a.pth'), tmp_path / 'name')
    days = {datetime.date.today() - datetime.timedelta(days=n) for n in (0, 1)}
    assert any(f'_{day:%Y%m%d}-' in path.name for day in days)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_equal_weights_give_equal_bytes(tmp_path, suffix):
    if suffix == '.safetensors':
        pytest.importorskip('safetensors')
    made = []
    for number in range(3):  # safetensors writes several entries of metadata in random order
        source = save(tmp_path / f'{number}.pth', optimizer={'step': number})
        path, _ = publish_checkpoint(source, tmp_path / str(number) / 'name', suffix, DAY)
        made.append((path.name, path.read_bytes()))
    assert made[0] == made[1] == made[2]


def test_safetensors_keep_weights_and_meta(tmp_path):
    pytest.importorskip('safetensors')
    meta = dict(epoch=2, dataset_meta=dict(classes=('cat', 'dog')))
    source = save(tmp_path / 'a.pth', meta=meta)
    path, _ = publish_checkpoint(source, tmp_path / 'name', '.safetensors')
    content = read_checkpoint(path)
    assert torch.equal(content['state_dict']['weight'], torch.arange(6.0).view(2, 3))
    assert content['meta'] == json.loads(json.dumps(dict(config='name', **meta)))


def test_memory_shared_with_other_tensors_is_not_published(tmp_path):
    row = torch.zeros(1000, 1000)[0]
    path, _ = publish_checkpoint(save(tmp_path / 'a.pth', state_dict={'w': row}), tmp_path / 'b')
    assert path.stat().st_size < 10_000


def test_of_averaged_weights_those_that_the_runner_tests_are_published(tmp_path):
    raw = {'module.weight': torch.ones(1), 'steps': torch.tensor(5)}
    source = save(tmp_path / 'a.pth', state_dict={'weight': torch.zeros(1)}, ema_state_dict=raw)
    path, lines = publish_checkpoint(source, tmp_path / 'name')
    content = torch.load(path, weights_only=True)
    assert 'ema_state_dict' not in content and not content['state_dict']['weight'].any()
    assert lines[-1].startswith('EMA: published are the averaged weights')


def test_versions_of_modules_are_kept(tmp_path):
    state_dict = torch.nn.BatchNorm2d(2).state_dict()
    path, _ = publish_checkpoint(save(tmp_path / 'a.pth', state_dict=state_dict), tmp_path / 'b')
    assert torch.load(path, weights_only=True)['state_dict']._metadata[''] == {'version': 2}


def test_meta_keeps_plain_values_and_names_the_rest():
    meta = dict(
        epoch=1,
        seed=np.int64(3),
        cfg='text',
        dataset_meta=dict(classes=('a',), palette=[(1, 2, 3)], weights=np.ones(2)),
    )
    kept, left_out = select_meta(meta)
    assert kept == dict(epoch=1, dataset_meta=dict(classes=('a',), palette=[(1, 2, 3)]))
    assert sorted(left_out) == ['cfg', 'dataset_meta.weights', 'seed']


def test_a_note_about_avg_down_is_kept(tmp_path):
    source = save(tmp_path / 'a.pth', meta=dict(contnet=dict(avg_down=True)))
    path, _ = publish_checkpoint(source, tmp_path / 'name')
    assert torch.load(path, weights_only=True)['meta']['contnet'] == {'avg_down': True}


@pytest.mark.parametrize(
    'prefix, place',
    [
        ('new/name', 'new/name_'),
        ('name.pth', 'name_'),
        ('name.safetensors', 'name_'),
        ('v0.1-name', 'v0.1-name_'),
        ('configs/retinanet/some-config.py', 'some-config_'),
        ('configs/retinanet/some-config.yaml', 'some-config_'),
    ],
)
def test_the_prefix_says_where_the_file_goes(tmp_path, prefix, place):
    path, _ = publish_checkpoint(save(tmp_path / 'a.pth'), tmp_path / prefix, day=DAY)
    assert str(path.relative_to(tmp_path)).startswith(f'{place}20260131-')


def test_a_folder_is_no_prefix(tmp_path):
    source = save(tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='must end in the name of the new file'):
        publish_checkpoint(source, tmp_path)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    'content, words',
    [
        (
            {'model': {'layer0.conv.conv.weight': torch.zeros(1)}},
            r"\['model'\].*convert_checkpoint",
        ),
        ({'state_dict': {}}, 'holds no'),
        ([1], 'but list'),
        ({'state_dict': {'weight': torch.zeros(1), 'name': 'text'}}, r"\['name'\] are no tensors"),
    ],
)
def test_what_no_runner_saved_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=words):
        publish_checkpoint(tmp_path / 'a.pth', tmp_path / 'name')
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


def test_a_changed_file_is_noticed(tmp_path):
    path, _ = publish_checkpoint(save(tmp_path / 'a.pth'), tmp_path / 'name')
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'{path.name} is damaged'):
        check_published(path)


def test_a_name_without_hash_cannot_be_checked(tmp_path):
    with pytest.raises(ValueError, match='epoch_1.pth has no hash in its name'):
        check_published(tmp_path / 'epoch_1.pth')


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    source = save(tmp_path / 'a.pth')

    def interrupt(path, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish_checkpoint(source, tmp_path / 'name')
    assert list(tmp_path.iterdir()) == [source]


def test_the_script_publishes(tmp_path):
    result = run_tool('publish_checkpoint', save(tmp_path / 'a.pth'), tmp_path / 'name')
    assert result.returncode == 0, result.stderr
    path = Path(result.stdout.rsplit('wrote ', 1)[1].strip())
    assert path.parent == tmp_path and check_published(path)


def test_the_script_runs_no_code_of_a_file(tmp_path):
    marker = tmp_path / 'ran'
    source = save(tmp_path / 'a.pth', extra=RunsCode(marker))
    result = run_tool('publish_checkpoint', source, tmp_path / 'name')
    assert result.returncode == 2 and 'is refused' in result.stderr
    assert 'Traceback' not in result.stderr
    assert list(tmp_path.iterdir()) == [source]
