"""Reading and plotting MMEngine's logs of a training and of the runs that resumed it."""

import json

import pytest

from contnet_mm.apis.training_log import read_training_log
from tests.helpers import run_tool


def train_line(iteration, loss, epoch=None):
    line = {'lr': 0.01, 'loss': loss, 'iter': iteration, 'step': iteration}
    return line if epoch is None else {**line, 'epoch': epoch}


def val_line(step, value):
    return {'coco/bbox_mAP': value, 'data_time': 0.1, 'step': step}


def write_run(work_dir, stamp, lines):
    path = work_dir / stamp / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def run(*arguments):
    pytest.importorskip('matplotlib')
    return run_tool('plot_training', *arguments)


def test_one_run_gives_its_curves(tmp_path):
    write_run(tmp_path, '20260101_000000', [train_line(50, 2.0, 1), val_line(1, 0.1)])
    log = read_training_log(tmp_path)
    assert log.by_epoch
    assert log.train == {'lr': [(50, 0.01)], 'loss': [(50, 2.0)]}
    assert log.val['coco/bbox_mAP'] == [(1, 0.1)]


def test_resumed_run_replaces_overlapping_steps(tmp_path):
    first = [train_line(i * 10, 9 - i, i) for i in (1, 2, 3)]
    first += [val_line(i, i / 10) for i in (1, 2, 3)]
    second = [train_line(20, 70, 2), val_line(2, 0.8), train_line(30, 60, 3), val_line(3, 0.9)]
    # Written in the wrong order: the names decide.
    write_run(tmp_path, '20260102_000000', second)
    write_run(tmp_path, '20260101_000000', first)
    log = read_training_log(tmp_path)
    assert log.train['loss'] == [(10, 8), (20, 70), (30, 60)]
    assert log.val['coco/bbox_mAP'] == [(1, 0.1), (2, 0.8), (3, 0.9)]


def test_resumed_run_drops_later_steps_of_the_abandoned_one(tmp_path):
    lines = [train_line(i, 1.0) for i in (100, 200, 300, 400)] + [val_line(200, 0.2)]
    write_run(tmp_path, '20260101_000000', [*lines, val_line(400, 0.4)])
    write_run(tmp_path, '20260101_120000', [train_line(250, 0.5)])
    log = read_training_log(tmp_path)
    assert not log.by_epoch
    assert log.train['loss'] == [(100, 1.0), (200, 1.0), (250, 0.5)]
    assert log.val['coco/bbox_mAP'] == [(200, 0.2)]


def test_a_run_may_begin_with_the_validation_that_the_earlier_one_did_not_finish(tmp_path):
    write_run(tmp_path, '20260101_000000', [train_line(10, 1.0, 1), val_line(1, 0.1)])
    again = [val_line(1, 0.1), train_line(20, 0.9, 2)]
    write_run(tmp_path, '20260102_000000', again)
    write_run(tmp_path, '20260103_000000', [val_line(2, 0.2)])  # of a finished training
    log = read_training_log(tmp_path)
    assert log.train['loss'] == [(10, 1.0), (20, 0.9)]
    assert log.val['coco/bbox_mAP'] == [(1, 0.1), (2, 0.2)]


def test_tests_and_empty_runs_change_nothing(tmp_path):
    write_run(tmp_path, '20260101_000000', [train_line(10, 1.0, 1), val_line(1, 0.1)])
    write_run(tmp_path, '20260102_000000', [])
    write_run(tmp_path, '20260103_000000', [val_line(0, 0.7)])
    log = read_training_log(tmp_path)
    assert log.train['loss'] == [(10, 1.0)]
    assert log.val['coco/bbox_mAP'] == [(1, 0.1)]


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match='nowhere is no directory'):
        read_training_log(tmp_path / 'nowhere')


def test_directory_without_logs_is_named(tmp_path):
    with pytest.raises(ValueError, match='holds no log of a training: of 0 files'):
        read_training_log(tmp_path)


def test_half_of_the_last_line_is_left_out_but_none_before(tmp_path):
    write_run(tmp_path, '20260101_000000', [train_line(10, 1.0)])
    path = tmp_path / '20260101_000000' / 'vis_data' / 'scalars.json'
    path.write_text(path.read_text() + '{"loss": 0.')
    assert read_training_log(tmp_path).train['loss'] == [(10, 1.0)]
    path.write_text(path.read_text() + '\n{}\n')
    with pytest.raises(ValueError, match='line 2 is no JSON'):
        read_training_log(tmp_path)


def test_the_picture_shows_losses_and_metrics(tmp_path):
    image = pytest.importorskip('matplotlib.image')
    pictures = []
    for number, (loss, value) in enumerate([(1.0, None), (1.0, 0.1), (2.0, 0.1)]):
        lines = [train_line(10, loss, 1), *([val_line(1, value)] if value else [])]
        write_run(tmp_path / str(number), '20260101_000000', lines)
        run(tmp_path / str(number)).check_returncode()
        pictures.append(image.imread(tmp_path / str(number) / 'training.png'))
    assert (pictures[0] != pictures[1]).any() and (pictures[1] != pictures[2]).any()


def test_script_refuses_another_kind_of_picture(tmp_path):
    result = run(tmp_path, '--out', 'a.pdf')
    assert result.returncode == 2 and '--out must end in .png, got a.pdf' in result.stderr


def test_script_names_the_missing_directory(tmp_path):
    result = run(tmp_path / 'nowhere')
    assert result.returncode == 2 and 'is no directory' in result.stderr
