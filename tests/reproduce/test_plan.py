"""The plan of every table, on any number of GPUs, holds commands that the libraries take."""

import pytest
import torch

pytest.importorskip('mim')

from contnet_mm.apis.config import read_config as read_config_of_ours
from contnet_mm.reproduce import run
from contnet_mm.reproduce.launch import Cluster
from contnet_mm.reproduce.plan import render_plan
from contnet_mm.reproduce.rows import list_tables, read_rows
from contnet_mm.reproduce.run import make_trials
from tests.helpers import ROOT, run_tool
from tests.mim_commands import changes_of, known_options, parse

CLUSTERS = [Cluster(1), *(Cluster(n, 'pytorch') for n in (2, 4, 8)), Cluster(8, 'slurm', 'part')]
TABLES = [table for table in list_tables() if table != 'demo']


@pytest.fixture
def read_once(monkeypatch):
    """Read each config once, since that takes long."""
    read = {}

    def read_config(path, *_, **__):
        read.setdefault(path, read_config_of_ours(path, import_custom_modules=False))
        return read[path]

    monkeypatch.setattr(run, 'read_config', read_config)


@pytest.mark.parametrize('table', TABLES)
def test_every_command_is_understood_and_the_learning_rate_fits(table, tmp_path, read_once, capsys):
    rows = read_rows(table)
    for cluster in CLUSTERS:
        trials = make_trials(rows, [0], cluster, tmp_path)
        refused = capsys.readouterr().out.count('left out: ')
        assert len(trials) + refused == len(rows) and refused <= 2
        text = render_plan(trials, 1)
        assert 'unknown' not in text and ' GB of checkpoints' in text.splitlines()[0]
        commands = [line for line in text.splitlines() if line.startswith('mim ')]
        assert len(commands) == 2 * len(trials)
        for command in commands:
            check_command(command, trials, text)


def check_command(command, trials, text):
    said = parse(command)
    others = said['other_args']
    names = {word for word in others if word.startswith('--')}
    assert names <= known_options(said['package'], said['verb']), command
    assert (ROOT / said['config']).is_file()
    if said['verb'] == 'test':
        return
    (trial,) = (trial for trial in trials if str(trial.folder.train_dir) in command)
    config = trial.config
    images = config.train_dataloader.batch_size
    batch = said['gpus'] * changes_of(said).get('train_dataloader.batch_size', images)
    base = config.auto_scale_lr.base_batch_size
    assert ('--auto-scale-lr' in others) == (batch != base)
    assert trial.launch.lr == pytest.approx(config.optim_wrapper.optimizer.lr * batch / base)
    assert f'of {batch} images, learning rate {trial.launch.lr:g}' in text


def test_the_tool_prints_plans_and_writes_nothing(tmp_path):
    tables = ('retinanet', 'pspnet')
    result = run_tool('reproduce', *tables, '--gpus', 8, '--seeds', 0, 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = sum(len(read_rows(table)) for table in tables) - result.stdout.count('left out: ')
    assert result.stdout.count('\nmim train ') == 2 * rows
    assert 'missing: data in data/coco' in result.stdout
    assert 'fetch_weights M' in result.stdout
    assert [*tmp_path.iterdir()] == []


def test_the_published_rows_on_coco_take_879600_iterations(tmp_path):
    tables = ('retinanet', 'fcos', 'faster_rcnn', 'mask_rcnn')
    result = run_tool('reproduce', *tables, '--published', '--gpus', 8, cwd=tmp_path)
    total = '10 trainings on 8 GPUs each, 1 at a time; 879,600 iterations in all; '
    assert result.stdout.startswith(total), result.stderr
    assert result.stdout.count('\nmim train ') == 10


@pytest.mark.parametrize(
    ('arguments', 'status', 'message'),
    [
        ((), 2, 'this machine has 4 GPUs, not 8: --gpus 4, or --launcher slurm'),
        (('--launcher', 'slurm', '--partition', 'part'), 1, ''),
    ],
)
def test_gpus_that_are_not_there_are_refused_but_for_slurm(
    tmp_path, monkeypatch, arguments, status, message
):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    row = ('retinanet', '--models', 'retinanet_r50*', '--gpus', 8)
    result = run_tool('reproduce', *row, '--run', '--stage', 'test', *arguments, cwd=tmp_path)
    assert result.returncode == status and message in result.stderr
    assert run_tool('reproduce', *row, *arguments, cwd=tmp_path).returncode == 0  # the plan


def test_a_report_needs_no_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    arguments = ('retinanet', '--gpus', 8, '--run', '--stage', 'summary')
    assert run_tool('reproduce', *arguments, cwd=tmp_path).returncode == 0
    assert (tmp_path / 'work_dirs/reproduce/report.json').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['retinanett'], "'retinanett' is no table; did you mean retinanet?"),
        (['retinanet', '--gpus', 8, '--gpus-per-row', 3], '8 GPUs cannot be shared by rows of 3'),
        (['pspnet', '--gpus', 3], '3 GPUs cannot share evenly'),
        (['fcos', '--gpus', 8, '--launcher', 'slurm'], 'Slurm needs a partition'),
        (['fcos', '--gpus', 8, '--srun-args=--time=1'], 'srun_args needs the launcher slurm'),
        (['demo', '--published'], 'no published row of demo matches *; there are none'),
    ],
)
def test_the_tool_refuses_what_cannot_be_done(arguments, message, tmp_path):
    result = run_tool('reproduce', *arguments, cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr
