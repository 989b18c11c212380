"""The plan of every table, on any number of GPUs, holds commands that the libraries take."""

import pytest

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
def test_every_command_is_understood_and_the_learning_rate_fits(table, tmp_path, read_once):
    rows = read_rows(table)
    for cluster in CLUSTERS:
        refused = []
        trials = make_trials(rows, [0], cluster, tmp_path, report=refused.append)
        assert len(trials) + len(refused) == len(rows) and len(trials) >= len(rows) - 2
        text = render_plan(trials, 1)
        assert 'iterations unknown' not in text
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
    assert result.stdout.count('mim train ') == 2 * rows
    assert 'missing: data in data/coco' in result.stdout
    assert 'fetch_weights M' in result.stdout
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['retinanett'], "'retinanett' is no table; did you mean retinanet?"),
        (['retinanet', '--gpus', 8, '--gpus-per-row', 3], '8 GPUs cannot be shared by rows of 3'),
        (['pspnet', '--gpus', 3], '3 GPUs cannot share evenly'),
        (['fcos', '--gpus', 8, '--launcher', 'slurm'], 'Slurm needs a partition'),
    ],
)
def test_the_tool_refuses_what_cannot_be_done(arguments, message, tmp_path):
    result = run_tool('reproduce', *arguments, cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr
