"""Rows are trained and tested once, whatever kills the program."""

import multiprocessing
import os
import signal

import pytest

from contnet_mm.reproduce import run as module
from contnet_mm.reproduce.launch import Cluster
from contnet_mm.reproduce.report import make_report
from contnet_mm.reproduce.rows import read_rows
from contnet_mm.reproduce.run import make_trials, run_trials

STAGES = ('train', 'test')
CPU = Cluster(0)
fork = multiprocessing.get_context('fork')


def trials_of(root, work_dir, seeds=(0,), cluster=CPU, **options):
    return make_trials(read_rows('tiny', root=root), seeds, cluster, work_dir, options, root)


def run(root, work_dir, seeds=(0,), stages=STAGES, num_parallel=1, **options):
    """Run the table; return its report."""
    trials = trials_of(root, work_dir, seeds, **options)
    outcome = run_trials(trials, stages, num_parallel, work_dir, root)
    return make_report(trials, [], outcome)


def run_elsewhere(*args, **environ):
    """Run the table in a process of its own, which something may kill; return its status."""

    def work():
        os.setsid()
        os.environ.update(environ)
        run(*args)

    process = fork.Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def results(report):
    return {row['name']: row['got']['Top 1 Accuracy']['values'] for row in report['rows']}


def finished_epochs(trace):
    return sorted(
        line for line in trace.read_text().splitlines() if 'epoch' in line and 'ends' in line
    )


ALL_EPOCHS = sorted(f'{name} epoch {i} ends' for name in ('first', 'second') for i in (1, 2, 3))
EXPECTED = {'first': [59.0], 'second': [59.0]}


def test_each_row_is_trained_and_tested_with_each_seed(root, trace, tmp_path):
    report = run(root, tmp_path / 'work', seeds=(0, 1))
    assert results(report) == {'first': [59.0, 60.0], 'second': [59.0, 60.0]}
    (row,) = (row for row in report['rows'] if row['name'] == 'second')
    assert row['got']['Top 1 Accuracy']['mean'] == 59.5
    assert row['got']['Top 1 Accuracy']['spread'] == pytest.approx(0.5**0.5, abs=1e-3)


def test_what_is_finished_is_not_run_again(root, trace, tmp_path):
    run(root, tmp_path / 'work')
    before = trace.read_text()
    assert results(run(root, tmp_path / 'work')) == EXPECTED
    assert trace.read_text() == before


def test_other_options_are_another_training(root, trace, tmp_path):
    run(root, tmp_path / 'work')
    run(root, tmp_path / 'work', **{'model.backbone.avg_down': True})
    assert finished_epochs(trace) == sorted(2 * ALL_EPOCHS)


def test_options_of_the_backbone_go_to_contnet_alone(tmp_path):
    names = ['retinanet_r50_fpn_1x_coco', 'retinanet_contnet-m_fpn_1x_coco']
    rows, shared = read_rows('retinanet', names), {'optim_wrapper.optimizer.lr': 0.02}
    options = {'model.backbone': dict(deep_stem=True), 'model.backbone.avg_down': True, **shared}
    baseline, ours = make_trials(rows, [0], CPU, tmp_path, options)
    for trial, is_ours in ((baseline, False), (ours, True)):
        backbone = trial.config.model.backbone
        assert ('avg_down' in backbone) == ('deep_stem' in backbone) == is_ours
        for command in (trial.train_command(), trial.test_command('x.pth')):
            assert ('model.backbone' in ' '.join(command)) == is_ours
            assert 'optim_wrapper.optimizer.lr=0.02' in command
        assert 'randomness.seed=0' in trial.train_command()
    (alone,) = make_trials(rows[:1], [0], CPU, tmp_path, shared)
    assert baseline.fingerprint == alone.fingerprint


POINTS = [
    'train second starts',
    'second writes epoch 1',
    'second epoch 1 ends',
    'second writes epoch 2',
    'second epoch 3 ends',
    'test second starts',
    'test second ends',
    'first epoch 2 starts',
]


@pytest.mark.parametrize('point', POINTS)
def test_a_kill_at_any_point_of_a_training_changes_no_number(root, trace, tmp_path, point):
    work_dir = tmp_path / 'work'
    status = run_elsewhere(root, work_dir, KILL_AT=point)
    assert status == -signal.SIGKILL and trace.read_text().splitlines()[-1] == point
    assert results(run(root, work_dir)) == EXPECTED
    assert finished_epochs(trace) == ALL_EPOCHS  # nothing was trained twice


def test_a_row_that_fails_does_not_stop_the_others(root, trace, tmp_path, monkeypatch):
    monkeypatch.setenv('FAIL_AT', 'second epoch 2 starts')
    report = run(root, tmp_path / 'work')
    verdicts = {row['name']: row['verdict'] for row in report['rows']}
    assert verdicts == {'first': 'measured', 'second': 'failed'}
    (failed,) = (row for row in report['rows'] if row['name'] == 'second')
    assert 'a failure of its own' in failed['trials'][0]['error']
    monkeypatch.delenv('FAIL_AT')
    assert results(run(root, tmp_path / 'work')) == EXPECTED
    assert finished_epochs(trace) == ALL_EPOCHS


def test_a_check_that_breaks_down_lets_no_row_pass(root, trace, tmp_path, monkeypatch):
    calls = []

    def check(*args):
        calls.append(args)
        raise OSError('no such program')

    monkeypatch.setattr(module, 'ask', check)
    for name in ('refuse_missing_operations', 'check_weights'):
        monkeypatch.setattr(module, name, lambda *_: None)
    report = run(root, tmp_path / 'work', stages=('check', 'train'))
    assert [row['verdict'] for row in report['rows']] == ['failed', 'failed']
    assert len(calls) == 1 and not trace.exists()


def test_a_row_whose_operations_are_missing_is_not_trained(root, trace, tmp_path, monkeypatch):
    def refuse(config):
        if 'second' in config:
            raise ValueError('second.py calls carafe_forward')

    monkeypatch.setattr(module, 'refuse_missing_operations', refuse)
    for name in ('ask', 'check_weights'):
        monkeypatch.setattr(module, name, lambda *_: None)
    report = run(root, tmp_path / 'work', stages=('check', 'train', 'test'))
    verdicts = {row['name']: row['verdict'] for row in report['rows']}
    assert verdicts == {'first': 'measured', 'second': 'failed'}
    (failed,) = (row for row in report['rows'] if row['name'] == 'second')
    assert failed['trials'][0]['error'] == 'second.py calls carafe_forward'
    assert 'second' not in trace.read_text()


def test_a_second_program_waits_for_the_first(root, trace, tmp_path):
    work_dir = tmp_path / 'work'
    others = [fork.Process(target=run, args=(root, work_dir)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert [other.exitcode for other in others] == [0, 0]
    assert finished_epochs(trace) == ALL_EPOCHS
    assert results(run(root, work_dir)) == EXPECTED


def test_a_training_that_outlives_the_program_is_waited_for(root, trace, tmp_path):
    work_dir, point = tmp_path / 'work', 'second epoch 2 starts'
    assert run_elsewhere(root, work_dir, KILL_PARENT_AT=point) == -signal.SIGKILL
    assert trace.read_text().splitlines()[-1] == point
    assert results(run(root, work_dir)) == EXPECTED
    assert finished_epochs(trace) == ALL_EPOCHS  # nothing was trained beside it


@pytest.mark.parametrize(
    ('launcher', 'visible', 'shares'),
    [
        ('pytorch', '', ['0,1', '2,3']),
        ('pytorch', '4,5,6,7', ['4,5', '6,7']),
        ('pytorch', 'GPU-a,GPU-b,MIG-c,MIG-d', ['GPU-a,GPU-b', 'MIG-c,MIG-d']),
        ('slurm', '4,5,6,7', [None, None]),  # Slurm chooses them itself
    ],
)
def test_rows_side_by_side_have_their_own_gpus_out_of_the_visible_ones(
    root, tmp_path, monkeypatch, launcher, visible, shares
):
    seen = []

    def run_command(command, log, env=None, **_):
        seen.append((env.get('CUDA_VISIBLE_DEVICES'), command))
        raise module.CommandError('enough')

    monkeypatch.setattr(module, 'run_command', run_command)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    cluster = Cluster(2, launcher, 'part' if launcher == 'slurm' else None)
    trials = trials_of(root, tmp_path / 'work', cluster=cluster)
    run_trials(trials, ('train',), 2, tmp_path / 'work', root)
    assert sorted(share or '' for share, _ in seen) == [share or '' for share in shares]
    ports = [command[command.index('--port') + 1] for _, command in seen if '--port' in command]
    assert len(ports) == 2 * (launcher == 'pytorch')
    assert all(1024 < int(port) < 65536 for port in ports)


@pytest.mark.parametrize('point', ['first epoch 2 starts', 'first epoch 3 ends', 'test first ends'])
def test_a_disk_that_fills_up_stops_no_number(root, trace, small_disk, monkeypatch, point):
    monkeypatch.setenv('FILL_AT', point)
    monkeypatch.setenv('FILLER', str(small_disk / 'filler'))
    report = run(root, small_disk / 'work')
    verdicts = {row['name']: row['verdict'] for row in report['rows']}
    assert verdicts == {'second': 'below', 'first': 'failed'}
    (failed,) = (row for row in report['rows'] if row['name'] == 'first')
    assert 'No space left on device' in failed['trials'][0]['error']
    monkeypatch.delenv('FILL_AT')
    (small_disk / 'filler').unlink()
    assert results(run(root, small_disk / 'work')) == EXPECTED
    assert finished_epochs(trace) == ALL_EPOCHS
