"""Rows are trained and tested once, whatever kills the program."""

import multiprocessing
import os
import signal

import pytest

from contnet_mm.reproduce import run as module
from contnet_mm.reproduce import state
from contnet_mm.reproduce.launch import Cluster
from contnet_mm.reproduce.report import make_report
from contnet_mm.reproduce.rows import read_rows
from contnet_mm.reproduce.run import make_trials, run_trials
from contnet_mm.utils.files import write_file

STAGES = ('train', 'test')
CPU = Cluster(0)
fork = multiprocessing.get_context('fork')


def trials_of(root, work_dir, seeds=(0,), cluster=CPU, **options):
    return make_trials(read_rows('tiny', root=root), seeds, cluster, work_dir, options, root)


def run(root, work_dir, seeds=(0,), stages=STAGES, num_parallel=1, **options):
    """Run the table; return its report."""
    trials = trials_of(root, work_dir, seeds, **options)
    outcome = run_trials(trials, stages, num_parallel, work_dir, lambda text: None, root)
    return make_report(trials, [], outcome)


def run_elsewhere(*args, kill_at_write=None, environ=None):
    """Run the table in a process of its own, which something may kill; return its status."""

    def work():
        os.setsid()
        os.environ.update(environ or {})
        writes = 0

        def write(path, content):
            nonlocal writes
            writes += 1
            if writes == kill_at_write:
                os.kill(os.getpid(), signal.SIGKILL)
            write_file(path, content)

        state.write_file = module.write_file = write
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


@pytest.mark.parametrize(
    'option', [{'optim_wrapper.optimizer.lr': 0.1}, {'model.backbone.avg_down': True}]
)
def test_other_options_are_another_training(root, trace, tmp_path, option):
    run(root, tmp_path / 'work')
    run(root, tmp_path / 'work', **option)
    assert finished_epochs(trace) == sorted(2 * ALL_EPOCHS)


POINTS = [
    'train second starts',
    'second epoch 1 starts',
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
    status = run_elsewhere(root, work_dir, environ=dict(KILL_AT=point))
    assert status == -signal.SIGKILL and trace.read_text().splitlines()[-1] == point
    assert results(run(root, work_dir)) == EXPECTED
    assert finished_epochs(trace) == ALL_EPOCHS  # nothing was trained twice


@pytest.mark.parametrize('number', range(1, 7))
def test_a_kill_before_any_note_is_written_changes_no_number(root, trace, tmp_path, number):
    work_dir = tmp_path / 'work'
    assert run_elsewhere(root, work_dir, kill_at_write=number) == -signal.SIGKILL
    assert results(run(root, work_dir)) == EXPECTED
    assert finished_epochs(trace) == ALL_EPOCHS


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
    environ = dict(KILL_PARENT_AT='second epoch 2 starts')
    work_dir = tmp_path / 'work'
    assert run_elsewhere(root, work_dir, environ=environ) == -signal.SIGKILL
    assert trace.read_text().splitlines()[-1] == 'second epoch 2 starts'
    assert results(run(root, work_dir)) == EXPECTED
    assert finished_epochs(trace) == ALL_EPOCHS  # nothing was trained beside it


def test_rows_side_by_side_have_their_own_gpus_and_ports(root, trace, tmp_path, monkeypatch):
    seen = []

    def run_command(command, log, env=None, **_):
        seen.append((tuple(command), dict(env)))
        raise module.CommandError('enough')

    monkeypatch.setattr(module, 'run_command', run_command)
    trials = trials_of(root, tmp_path / 'work', cluster=Cluster(4, 'pytorch'))
    run_trials(trials, ('train',), 2, tmp_path / 'work', lambda text: None, root)
    assert {env['CUDA_VISIBLE_DEVICES'] for _, env in seen} <= {'0,1,2,3', '4,5,6,7'}
    ports = [command[command.index('--port') + 1] for command, _ in seen]
    assert len(seen) == 2 and all(1024 < int(port) < 65536 for port in ports)
    assert all(command[command.index('--gpus') + 1] == '4' for command, _ in seen)


def test_a_full_disk_is_an_error_that_leaves_finished_rows(root, trace, tmp_path, monkeypatch):
    def write(path, content):
        if 'first' in str(path):
            raise OSError(28, 'No space left on device')
        write_file(path, content)

    monkeypatch.setattr(state, 'write_file', write)
    report = run(root, tmp_path / 'work')
    verdicts = {row['name']: row['verdict'] for row in report['rows']}
    assert verdicts == {'first': 'failed', 'second': 'below'}
    (failed,) = (row for row in report['rows'] if row['name'] == 'first')
    assert 'No space left' in failed['trials'][0]['error']


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
