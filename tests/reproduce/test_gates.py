"""What is missing or wrong is found before a training starts, with the command that helps."""

import io
from contextlib import nullcontext

import pytest
import torch
from mmengine.config import Config

from contnet_mm import ConTNet
from contnet_mm.apis.config import read_config
from contnet_mm.checkpoint.sources import ways_to_get
from contnet_mm.reproduce import gates
from contnet_mm.reproduce.gates import (
    GateError,
    check_baseline,
    check_weights,
    fetch_zoo,
    list_addresses,
    list_missing,
)
from contnet_mm.reproduce.launch import Cluster
from contnet_mm.reproduce.rows import Zoo
from tests.file_server import serve
from tests.helpers import RunsCode


def config_of(**backbone):
    return Config(
        dict(
            model=dict(backbone=dict(type='contnet_mm.ConTNet', arch='tiny', **backbone)),
            train_dataloader=dict(dataset=dict(type='CocoDataset', data_root='data/nowhere/')),
        )
    )


def starting_from(path):
    return config_of(init_cfg=dict(type='Pretrained', checkpoint=str(path)))


def test_missing_data_and_weights_are_named_with_their_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = list_missing(starting_from('checkpoints/contnet-ti_in1k.pth'))
    assert [(x.what, x.fix) for x in missing] == [
        ('data in data/nowhere/', 'see docs/data.md'),
        ('weights checkpoints/contnet-ti_in1k.pth', ways_to_get('checkpoints/contnet-ti_in1k.pth')),
    ]
    (tmp_path / 'data/nowhere').mkdir(parents=True)
    assert [x.what for x in list_missing(config_of())] == []


def test_missing_weights_that_a_row_makes_are_named_with_that_row(tmp_path, monkeypatch):
    config = read_config('mask-rcnn_contnet-m_fpn_coco-pretrained_1x_cityscapes', False)
    monkeypatch.chdir(tmp_path)
    (missing,) = (x for x in list_missing(config) if 'weights' in x.what and '_coco' in x.what)
    name, file = 'mask-rcnn_contnet-m_fpn_1x_coco', config.load_from
    assert f'python -m contnet_mm reproduce mask_rcnn --models {name} --run' in missing.fix
    assert missing.fix.endswith(f'cp work_dirs/reproduce/{name}_seed0_*/train/epoch_12.pth {file}')


def test_weights_that_fit_pass_and_others_do_not(tmp_path):
    path = tmp_path / 'weights.pth'
    with pytest.raises(GateError, match='weights.pth are missing: `python -m contnet_mm fetch'):
        check_weights(starting_from(path))
    torch.save(ConTNet('tiny').state_dict(), path)
    check_weights(starting_from(path))
    torch.save(ConTNet('small').state_dict(), path)
    with pytest.raises(GateError, match='do not fit'):
        check_weights(starting_from(path))
    path.write_bytes(path.read_bytes()[:-99])
    with pytest.raises(GateError, match='do not fit'):
        check_weights(starting_from(path))


def test_data_that_the_check_refuses_is_an_error_with_the_command(tmp_path, root):
    config = root / 'configs/tiny/first.py'
    with pytest.raises(GateError, match=f'python -m contnet_mm check_dataset --config {config}'):
        gates.ask(tmp_path / 'log', 'check_dataset', '--config', str(config))


def test_each_of_both_hosts_has_the_same_file():
    url = 'https://mmassets.onedl.ai/mmdetection/v2.0/x.pth'
    other = 'https://download.openmmlab.com/mmdetection/v2.0/x.pth'
    assert list_addresses(url) == [url, other] and list_addresses(other) == [other, url]
    assert list_addresses('https://elsewhere.org/x.pth') == ['https://elsewhere.org/x.pth']


NAME = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'


def as_file(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.fixture
def zoo(monkeypatch):
    """A row of a zoo whose first host has nothing and whose second has a file."""
    with serve(as_file({'state_dict': {'a': torch.zeros(2)}})) as server:
        dead = 'http://127.0.0.1:9/some/file.pth'
        monkeypatch.setattr(gates, 'list_addresses', lambda url: [dead, server.url])
        row = Zoo(dead, {'Top 1 Accuracy': 53.0})
        monkeypatch.setattr(gates, 'find_zoo', lambda name: row)
        yield row


def test_weights_of_the_zoo_come_from_the_host_that_has_them(zoo, tmp_path):
    path = fetch_zoo(zoo, tmp_path)
    assert torch.equal(torch.load(path)['state_dict']['a'], torch.zeros(2))
    assert [*tmp_path.iterdir()] == [path]


def test_weights_of_the_zoo_that_hold_code_are_refused_before_mmengine_opens_them(
    tmp_path, monkeypatch
):
    marker, folder = tmp_path / 'ran', tmp_path / 'zoo'
    with serve(as_file({'state_dict': {}, 'meta': RunsCode(marker)})) as server:
        monkeypatch.setattr(gates, 'list_addresses', lambda url: [server.url])
        with pytest.raises(GateError, match='refused.*mkdir.* --skip baseline'):
            fetch_zoo(Zoo(server.url, {}), folder)
    assert not marker.exists() and not [*folder.iterdir()]


def test_weights_of_the_zoo_that_no_host_has_are_an_error(tmp_path):
    row = Zoo('http://127.0.0.1:9/x.pth', {})
    with pytest.raises(GateError, match='x.pth, which cannot be fetched: .* --skip baseline'):
        fetch_zoo(row, tmp_path)


def test_a_baseline_passes_where_the_published_value_comes_out(zoo, trace, tmp_path, monkeypatch):
    # The program in place of mim gives 50 and 3 for each epoch.
    monkeypatch.setattr(gates, 'fetch_zoo', lambda *_: tmp_path / 'zoo_1.pth')
    folder = tmp_path / 'zoo_seed0_x'
    assert check_baseline(NAME, folder, Cluster(0)) == {'Top 1 Accuracy': 53.0}


@pytest.mark.parametrize(
    ('metric', 'logged', 'published', 'passes'),
    [
        ('box AP', {'coco/bbox_mAP': 0.364}, 36.5, True),
        ('box AP', {'coco/bbox_mAP': 0.363}, 36.5, False),
        ('mIoU', {'mIoU': 77.04}, 77.0, True),
        ('mIoU', {'mIoU': 77.1}, 77.0, False),
    ],
)
def test_a_baseline_may_differ_by_the_last_digit_that_is_printed(
    tmp_path, monkeypatch, metric, logged, published, passes
):
    monkeypatch.setattr(gates, 'find_zoo', lambda name: Zoo('', {metric: published}))
    monkeypatch.setattr(gates, 'fetch_zoo', lambda *_: tmp_path / 'zoo_1.pth')
    monkeypatch.setattr(gates, 'run_command', lambda *_, **__: None)
    monkeypatch.setattr(gates, 'read_metrics', lambda _: logged)
    with (
        nullcontext()
        if passes
        else pytest.raises(GateError, match=f'gives {metric} .* here, .* published {published}')
    ):
        check_baseline(NAME, tmp_path / 'zoo', Cluster(0))


def test_an_earlier_test_whose_clock_was_ahead_is_not_the_last(zoo, trace, tmp_path, monkeypatch):
    monkeypatch.setattr(gates, 'fetch_zoo', lambda *_: tmp_path / 'zoo_1.pth')
    folder = tmp_path / 'zoo_seed0_x'
    earlier = folder / 'resnet18_8xb32_in1k' / '9999_in_the_future'
    earlier.mkdir(parents=True)
    (earlier / 'x.json').write_text('{"accuracy/top1": 1.0, "time": 0.5}')
    assert check_baseline(NAME, folder, Cluster(0)) == {'Top 1 Accuracy': 53.0}


def test_a_baseline_whose_test_fails_is_an_error(zoo, trace, tmp_path, monkeypatch):
    monkeypatch.setattr(gates, 'fetch_zoo', lambda *_: tmp_path / 'zoo_1.pth')
    monkeypatch.setenv('FAIL_AT', 'test resnet18_8xb32_in1k starts')
    with pytest.raises(GateError, match='cannot be tested'):
        check_baseline(NAME, tmp_path / 'zoo_seed0_x', Cluster(0))
    assert not [*tmp_path.glob('zoo_seed0_x/**/*.json')]
