"""The benchmark: what it plans, computes, writes and survives; no time is asserted."""

import json
import re
import runpy
import subprocess
import sys

import pytest
import torch

from contnet_mm.benchmark import run
from contnet_mm.benchmark.machine import command_line
from contnet_mm.benchmark.measure import MAX_REASON, Step, forget_compiled, reason_of
from contnet_mm.benchmark.memory import measure_peak, peak_in_subprocess
from contnet_mm.benchmark.networks import CHANNELS_LAST, Setting, build_network, list_settings
from contnet_mm.benchmark.plan import MULTISCALE, NETWORKS, Cell, Size, parse_size, plan_cells
from contnet_mm.benchmark.report import best_lines, render_report
from contnet_mm.benchmark.shapes import multiscale_shapes, resize_keeping_ratio
from contnet_mm.benchmark.statistics import (
    Spread,
    best_cell,
    choose_trial,
    iterations_for,
    plain_of,
    ratio,
    spread,
)
from contnet_mm.utils.files import write_file
from tests.helpers import ROOT

TOOL = ROOT / 'tools' / 'benchmark.py'
SMALL = Size(1, 64, 64)


@pytest.fixture(autouse=True)
def usual_compiler():
    yield
    forget_compiled(raise_limit=False)


def made_cell(network, seconds, mode='eager', dtype='float32', **changes):
    cell = run.new_cell(Cell(network, mode, dtype))
    return dict(cell, seconds=seconds, setting='made up', **changes)


def made_run(cells, **changes):
    table = {'size': '1x64x64', 'pass': 'inference', 'cells': cells}
    whole = dict(date='today', command='none', rounds=2, hardware={'CPU': 'one'}, software={})
    return {**whole, 'format': 1, 'tables': [table], **changes}


def rows_of(page):
    """Cells of the tables, by network, mode and dtype."""
    lines = [[word.strip() for word in line.split('|')[1:-1]] for line in page.splitlines()]
    return {tuple(words[:3]): words[3:] for words in lines if len(words) > 3}


@pytest.mark.parametrize(
    ('text', 'size'),
    [('800x1333', Size(1, 800, 1333)), ('4x224x224', Size(4, 224, 224)), (MULTISCALE, MULTISCALE)],
)
def test_size_is_read_as_written(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize('text', ['224', '224x', '0x64x64', '31x64', '1x2x3x4', '-1x64', 'large'])
def test_wrong_size_is_named(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_size(text)


def test_cells_that_would_be_others_again_are_left_out():
    asked = dict(networks=['contnet-m', 'contnet-m-cp', 'contnet-m'], modes=['eager'])
    dtypes = ['float32', 'bfloat16-pure']
    inference = plan_cells(**asked, dtypes=dtypes, pass_name='inference', device='cpu')
    training = plan_cells(**asked, dtypes=dtypes, pass_name='training', device='cpu')
    assert [str(cell) for cell in inference] == [
        'contnet-m eager float32',
        'contnet-m eager bfloat16-pure',
    ]
    assert [str(cell) for cell in training] == [
        'contnet-m eager float32',
        'contnet-m-cp eager float32',
    ]


def test_tf32_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="'tf32'.*'cpu'"):
        plan_cells(['resnet50'], ['eager'], ['tf32'], 'inference', 'cpu')


def test_multiscale_shapes_are_different_repeatable_and_within_the_bounds():
    shapes = multiscale_shapes(60, seed=0)
    assert shapes == multiscale_shapes(60, seed=0) != multiscale_shapes(60, seed=1)
    assert len(set(shapes)) == 60
    for shape in shapes:
        assert shape.batch == 2 and shape.height % 32 == shape.width % 32 == 0
        short, long = sorted((shape.height, shape.width))
        assert short <= 800 and long <= 1344
    assert any(s.height > s.width for s in shapes) and any(s.height < s.width for s in shapes)


def test_resized_image_keeps_its_ratio_and_meets_a_bound():
    assert resize_keeping_ratio((480, 640), 800, 1333) == (800, 1067)
    assert resize_keeping_ratio((640, 360), 800, 1333) == (1333, 750)


@pytest.mark.parametrize('number', [0, 101])
def test_number_of_shapes_out_of_range_is_named(number):
    with pytest.raises(ValueError, match=f'got {number}'):
        multiscale_shapes(number, seed=0)


def test_most_shapes_can_be_drawn():
    assert len(multiscale_shapes(100, seed=3)) == 100


def test_spread_is_the_median_between_the_10th_and_90th_percentile():
    assert spread(range(11)) == Spread(5, 1, 9)
    with pytest.raises(ValueError, match='empty'):
        spread([])


def test_ratio_is_taken_round_by_round():
    # The second round is slow for both: the ratio of the medians would be 1.5.
    value = ratio([1.0, 30.0, 3.0], [2.0, 60.0, 1.0])
    assert value.median == 0.5
    with pytest.raises(ValueError, match='3 and 2'):
        ratio([1, 2, 3], [1, 2])


def test_fastest_trial_is_chosen_among_those_that_did_not_fail():
    assert choose_trial([dict(ms=None), dict(ms=3.0), dict(ms=2.0)]) == 2
    assert choose_trial([dict(ms=None)]) is None


@pytest.mark.parametrize(('seconds', 'iterations'), [(0.05, 4), (0.03, 7), (0.5, 1)])
def test_a_measurement_takes_at_least_the_wanted_time(seconds, iterations):
    assert iterations_for(seconds, 0.2) == iterations


def test_best_cell_has_the_lowest_median_and_did_not_fail():
    cells = [
        made_cell('resnet50', [3.0, 3.0]),
        made_cell('resnet50', [2.0, 2.0], mode='compiled'),
        made_cell('resnet50', [1.0], mode='compiled', dtype='bfloat16', error='out of memory'),
        made_cell('swin-t', [0.1, 0.1]),
    ]
    assert best_cell(cells, 'resnet50') is cells[1]
    assert best_cell(cells, 'resnet50', mode='eager') is cells[0]
    assert best_cell(cells, 'resnet50', dtype='bfloat16') is None


def test_plain_reading_is_that_of_the_arch():
    names = ['contnet-m', 'contnet-m-cp', 'contnet-ti', 'resnet50', 'plain-m']
    assert [plain_of(name) for name in names] == ['plain-m', 'plain-m', 'plain-ti', None, None]


def test_table_divides_by_the_fastest_mode_and_by_the_plain_reading_in_the_same_mode():
    cells = [
        made_cell('contnet-m', [0.010, 0.010], memory_mb=12.3),
        made_cell('plain-m', [0.020, 0.020]),
        made_cell('plain-m', [0.008, 0.008], mode='compiled', compile_s=31.6),
        made_cell('resnet50', [0.016, 0.016]),
        made_cell('resnet50', [0.005, 0.005], mode='compiled'),
        made_cell('resnet50', [0.001, 0.001], dtype='bfloat16'),
    ]
    rows = rows_of(render_report(made_run(cells), 'resnet50'))
    ours = rows['contnet-m', 'eager', 'float32']
    assert ours[1:] == ['10 [10-10]', '2 [2-2]', '0.5 [0.5-0.5]', '12', '-']
    assert rows['plain-m', 'compiled', 'float32'][-1] == '32'
    assert best_lines(cells, 'resnet50')[0] == (
        "- contnet-m: eager float32, 10 [10-10] ms; 10 [10-10] of resnet50's best; "
        "1.25 [1.25-1.25] of plain-m's best"
    )


def test_failed_cells_and_settings_are_shown_with_their_reasons():
    trial = dict(setting='timm, contiguous', ms=None, compile_s=None, error='no such size')
    cells = [
        made_cell('swin-t', [], mode='compiled', error='the compiler failed'),
        made_cell('resnet50', [1.0, 1.0], trials=[trial], memory_error='not told'),
        made_cell('convnext-t', []),
    ]
    page = render_report(made_run(cells), 'resnet50')
    rows = rows_of(page)
    assert rows['swin-t', 'compiled', 'float32'][1] == '*failed*'
    assert rows['convnext-t', 'eager', 'float32'][1] == '*not run*'
    assert '- swin-t compiled float32: the compiler failed' in page
    assert 'only the setting timm, contiguous: no such size' in page
    assert '- resnet50 eager float32, its memory: not told' in page


def test_multiscale_table_shows_passes_and_compiled_graphs():
    cells = [
        made_cell('contnet-m', [], mode='dynamic', pass_seconds=[9.0, 3.0], graphs=[1, 2, 0]),
        made_cell('resnet50', [], pass_seconds=[8.0, 6.0], graphs=[0, 0, 0]),
        made_cell('swin-t', [], mode='dynamic', error='no'),
    ]
    whole = made_run([])
    whole['tables'] = [
        {'size': MULTISCALE, 'pass': 'training', 'cells': cells, 'shapes': ['2x64x64']}
    ]
    rows = rows_of(render_report(whole, 'resnet50'))
    ours = rows['contnet-m', 'dynamic', 'float32']
    assert ours[1:] == ['9', '3', '0.5', '1', '2', '0']
    assert rows['swin-t', 'dynamic', 'float32'][1] == '*failed*'


def test_reason_is_one_line_without_folders():
    error = RuntimeError('cannot build\n\ng++ /home/me/a.cpp\n/home/me/b.cpp:1: error: no type')
    assert reason_of(error) == 'RuntimeError: cannot build: b.cpp:1: error: no type'
    assert len(reason_of(ValueError('x' * 1000))) == MAX_REASON
    assert reason_of(MemoryError()) == 'MemoryError'


def test_command_is_kept_without_the_folder():
    words = ['--rounds', '2', '--out-dir', '/home/me', '--no-memory', '--out-dir=/home/me']
    assert command_line(words) == 'python tools/benchmark.py --rounds 2 --no-memory'


def test_every_rival_is_tried_in_both_memory_formats_and_with_both_libraries():
    assert [str(setting) for setting in list_settings('resnet50', timm=False)] == [
        'torchvision, contiguous',
        'torchvision, channels_last',
    ]
    swin = list_settings('swin-t', timm=True)
    assert {s.fused_attention for s in swin if s.source == 'timm'} == {True, False}
    assert len(swin) == len(set(swin)) == 6
    with pytest.raises(ValueError, match="'resnet18'"):
        list_settings('resnet18')


WIDTHS = {
    'ti': (48, 96, 192, 768),
    'resnet50': (256, 512, 1024, 2048),
    'swin': (96, 192, 384, 768),
    'convnext': (96, 192, 384, 768),
}


@pytest.mark.parametrize('network', NETWORKS)
def test_every_network_gives_four_maps_at_strides_4_to_32(network):
    size = Size(1, 64, 96)
    for setting in list_settings(network):
        net = build_network(network, setting, size).eval()
        maps = net(torch.zeros(1, 3, size.height, size.width))
        assert [tuple(y.shape[2:]) for y in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
        widths = WIDTHS.get(network.split('-')[-1]) or WIDTHS.get(network.split('-')[0])
        assert widths is None or tuple(y.shape[1] for y in maps) == widths
        sum(y.mean() for y in maps).backward()  # nothing is frozen, nothing left over
        assert all(parameter.grad is not None for parameter in net.parameters())


def test_settings_of_a_network_reach_it():
    relative = build_network('contnet-m-relative', Setting('contnet_mm'), SMALL)
    assert any(name.endswith('position.table') for name, _ in relative.named_parameters())
    assert build_network('contnet-m-cp', Setting('contnet_mm'), SMALL).stages[0][0].with_cp
    net = build_network('resnet50', Setting('torchvision', CHANNELS_LAST), SMALL)
    weight = next(p for p in net.parameters() if p.dim() == 4 and p.shape[2] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ('pass_name', 'dtype'),
    [
        ('inference', 'float32'),
        ('inference', 'bfloat16'),
        ('inference', 'bfloat16-pure'),
        ('training', 'float32'),
        ('training', 'bfloat16'),
    ],
)
def test_a_step_runs_in_its_dtype_and_leaves_no_gradients(pass_name, dtype):
    cell = Cell('contnet-ti', 'eager', dtype)
    step = Step(cell, Setting('contnet_mm'), SMALL, pass_name, 'cpu')
    seen, gradients = [], []
    step.net.stages[0][0].conv.register_forward_hook(
        lambda module, args, output: seen.append((output.dtype, output.requires_grad))
    )
    for parameter in step.net.parameters():
        parameter.register_hook(lambda gradient: gradients.append(gradient.abs().sum()))
    assert step.time(2) > 0
    training = pass_name == 'training'
    expected = torch.float32 if dtype == 'float32' else torch.bfloat16
    assert seen == [(expected, training)] * 2 and step.net.training == training
    assert len(gradients) == 2 * training * len([*step.net.parameters()])
    assert all(parameter.grad is None for parameter in step.net.parameters())


class MadeStep:
    """Stands in for a step: takes a made-up time, or fails."""

    seconds = {
        ('resnet50', 'contiguous'): 0.4,
        ('resnet50', CHANNELS_LAST): 0.3,
        ('contnet-ti', 'contiguous'): 0.1,
    }

    def __init__(self, cell, setting, size, pass_name, device):
        self.cell, self.setting, self.calls = cell, setting, 0
        if (cell.network, setting.memory_format) not in self.seconds:
            raise RuntimeError('cannot be built')

    def first(self):
        return 1.0

    def time(self, iterations):
        self.calls += 1
        return self.seconds[self.cell.network, self.setting.memory_format]

    def make_images(self, size):
        return size


@pytest.fixture
def made_steps(monkeypatch):
    monkeypatch.setattr(run, 'Step', MadeStep)
    settings = [Setting('torchvision'), Setting('torchvision', CHANNELS_LAST)]
    monkeypatch.setattr(run, 'list_settings', lambda network, timm=None: settings)


def run_made_table(save=lambda: None, rounds=3, modes=('eager',), quick=False):
    table = {'size': '1x64x64', 'pass': 'inference', 'cells': []}
    networks = ('resnet50', 'swin-t', 'contnet-ti')
    cells = [Cell(n, mode, 'float32') for n in networks for mode in modes]
    lines = []
    arguments = dict(rounds=rounds, seed=0, with_memory=False, quick=quick)
    arguments |= dict(save=save, say=lines.append)
    run.run_table(table, cells, SMALL, 'cpu', **arguments)
    return table, lines


def test_fastest_setting_goes_into_the_rounds_and_a_failing_network_is_kept_as_failed(made_steps):
    table, lines = run_made_table()
    resnet, swin, ours = table['cells']
    assert resnet['setting'] == 'torchvision, channels_last' and resnet['seconds'] == [0.3] * 3
    assert [trial['ms'] for trial in resnet['trials']] == [400, 300]
    assert swin['error'] == 'torchvision, contiguous: RuntimeError: cannot be built'
    assert swin['seconds'] == []
    # One of its settings fails, which does not matter.
    assert ours['seconds'] == [0.1] * 3 and ours['error'] is None and ours['iterations'] == 2
    assert [line for line in lines if 'swin-t' in line and 'failed' in line]
    assert sum(line.startswith('round') for line in lines) == 3


@pytest.mark.parametrize('quick, compiled', [(False, 2), (True, 1)])
def test_quick_compiles_the_setting_alone_that_was_the_fastest_eagerly(made_steps, quick, compiled):
    table, _ = run_made_table(modes=('eager', 'compiled'), quick=quick)
    resnet = [cell for cell in table['cells'] if cell['network'] == 'resnet50']
    assert [len(cell['trials']) for cell in resnet] == [2, compiled]
    assert {cell['setting'] for cell in resnet} == {'torchvision, channels_last'}


def test_a_cell_that_fails_in_a_round_is_failed_and_the_others_go_on(made_steps, monkeypatch):
    def time(self, iterations):
        self.calls += 1
        if self.cell.network == 'resnet50' and self.calls > 6:
            raise RuntimeError('out of memory')
        return 0.1

    monkeypatch.setattr(MadeStep, 'time', time)
    resnet, _, ours = run_made_table(rounds=4)[0]['cells']
    assert 'out of memory' in resnet['error'] and len(resnet['seconds']) < 4
    assert len(ours['seconds']) == 4 and ours['error'] is None


def test_an_interrupted_round_leaves_a_valid_file_of_the_rounds_before(tmp_path):
    path, calls = tmp_path / 'benchmark.json', []

    class Step:
        def time(self, iterations):
            calls.append(iterations)
            if len(calls) == 6:  # the second of the third round
                raise KeyboardInterrupt
            return 0.1

    cells = [Cell(network, 'eager', 'float32') for network in ('resnet50', 'contnet-ti')]
    results = {cell: dict(run.new_cell(cell), iterations=1) for cell in cells}
    whole = made_run([*results.values()])
    with pytest.raises(KeyboardInterrupt):
        run.time_rounds(
            {cell: Step() for cell in cells},
            results,
            rounds=9,
            seed=0,
            save=lambda: write_file(path, json.dumps(whole)),
            say=lambda line: None,
        )
    kept = json.loads(path.read_text())
    assert [cell['seconds'] for cell in kept['tables'][0]['cells']] == [[0.1, 0.1]] * 2
    assert [*tmp_path.iterdir()] == [path]


def test_order_is_shuffled_in_each_round_and_repeatable():
    def order(seed):
        called = []

        class Step:
            def __init__(self, cell):
                self.cell = cell

            def time(self, iterations):
                called.append(self.cell)
                return 0.1

        cells = [Cell(network, 'eager', 'float32') for network in NETWORKS[:5]]
        results = {cell: dict(run.new_cell(cell), iterations=1) for cell in cells}
        steps = {cell: Step(cell) for cell in cells}
        run.time_rounds(steps, results, 6, seed, lambda: None, lambda line: None)
        rounds = [tuple(called[i : i + 5]) for i in range(0, 30, 5)]
        assert all(set(found) == set(cells) for found in rounds)
        return rounds

    assert order(0) == order(0) != order(1)
    assert len(set(order(0))) > 1


def test_fused_kernels_are_timed_on_gpus_alone():
    asked = dict(networks=['contnet-m-fused'], modes=['eager'], dtypes=['bfloat16'])
    with pytest.raises(ValueError, match="'contnet-m-fused' is one of CUDA devices, got .*'cpu'"):
        plan_cells(**asked, pass_name='training', device='cpu')
    assert len(plan_cells(**asked, pass_name='training', device='cuda')) == 1


def test_multiscale_runs_each_shape_in_both_passes_and_keeps_failures(made_steps):
    table = {'size': MULTISCALE, 'pass': 'training'}
    cells = [Cell('resnet50', 'eager', 'float32'), Cell('swin-t', 'dynamic', 'float32')]
    shapes = [Size(2, 64, 64), Size(2, 64, 96), Size(2, 96, 64)]
    run.run_multiscale(table, cells, shapes, 'cpu', lambda: None, lambda line: None)
    resnet, swin = table['cells']
    assert resnet['pass_seconds'] == pytest.approx([0.9, 0.9]) and resnet['graphs'] == [0, 0, 0]
    assert resnet['setting'] == 'torchvision, channels_last'
    assert 'cannot be built' in swin['error']
    assert table['shapes'] == ['2x64x64', '2x64x96', '2x96x64']


def test_memory_of_training_is_more_than_that_of_inference():
    cell, size = Cell('contnet-ti', 'eager', 'float32'), Size(2, 96, 96)
    peaks = {
        name: peak_in_subprocess(cell, Setting('contnet_mm'), size, name)
        for name in ('inference', 'training')
    }
    # Its gradients alone are 4 bytes for each parameter of the backbone, 5.1 million.
    assert 1 < peaks['inference'] < 20 < peaks['training'] < 300


def test_memory_of_what_ran_before_does_not_count():
    cell = Cell('contnet-ti', 'eager', 'float32')
    step = Step(cell, Setting('contnet_mm'), SMALL, 'inference', 'cpu')
    torch.ones(10**8)
    assert 0 < measure_peak(step) < 100


def test_memory_that_cannot_be_told_has_a_reason():
    cell = Cell('contnet-ti', 'eager', 'float32')
    with pytest.raises(RuntimeError, match='at least 32'):
        peak_in_subprocess(cell, Setting('contnet_mm'), Size(1, 16, 16), 'inference')


def run_tool(*words):
    command = [sys.executable, TOOL, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_script_writes_results_and_tables(tmp_path):
    out = tmp_path / 'out'
    words = ['--sizes', '64x64', '--modes', 'eager', '--dtypes', 'float32', '--rounds', 1]
    words += ['--networks', 'contnet-ti', 'plain-ti', 'resnet50', '--no-memory', '--out-dir', out]
    result = run_tool(*words, '--device', 'cpu')
    assert result.returncode == 0, result.stderr
    assert '[1/3] 1x64x64 inference contnet-ti eager float32: ' in result.stdout
    content = json.loads((out / 'benchmark.json').read_text())
    assert [table['pass'] for table in content['tables']] == ['inference', 'training']
    for table in content['tables']:
        assert [len(cell['seconds']) for cell in table['cells']] == [1, 1, 1]
    text = ''.join((out / name).read_text() for name in ('benchmark.json', 'benchmark.md'))
    assert str(tmp_path) not in text and str(TOOL.parents[1]) not in text


def test_script_that_is_interrupted_writes_what_is_done_and_says_so(tmp_path, monkeypatch, capsys):
    tool = runpy.run_path(str(TOOL))

    def fill(table, *args, **kwargs):
        table['cells'] = [made_cell('resnet50', [1.0])]
        if table['pass'] == 'training':
            raise KeyboardInterrupt

    monkeypatch.setitem(tool['main'].__globals__, 'run_table', fill)
    words = ['--sizes', '64x64', '--networks', 'resnet50', '--device', 'cpu']
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *words, '--out-dir', str(tmp_path)])
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', 'is put back after the test')
    with pytest.raises(SystemExit) as end:
        tool['main']()
    assert end.value.code == 130 and 'interrupted' in capsys.readouterr().err
    content = json.loads((tmp_path / 'benchmark.json').read_text())
    assert content['tables'][0]['cells'][0]['seconds'] == [1.0]
    assert {path.name for path in tmp_path.iterdir()} == {'benchmark.json', 'benchmark.md'}


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--networks', 'resnet18'], "invalid choice: 'resnet18' (choose from"),
        (['--modes', 'fast'], "invalid choice: 'fast' (choose from"),
        (['--sizes', '31x64'], "size '31x64': "),
        (['--rounds', '0'], '--rounds must be at least 1, got 0'),
        (['--shapes', '0'], 'must be from 1 to 100, got 0'),
        (['--device', 'cpu', '--dtypes', 'tf32'], "dtype 'tf32' is one of CUDA devices"),
        (['--passes', 'training', '--dtypes', 'bfloat16-pure'], 'nothing to run'),
    ],
)
def test_script_names_what_is_wrong(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *words, '--out-dir', str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
