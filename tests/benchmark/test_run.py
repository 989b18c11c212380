"""How the benchmark runs cases and what it survives, with steps that are made up."""

import json

import pytest

from contnet_mm.benchmark import run
from contnet_mm.benchmark.networks import CHANNELS_LAST, Setting
from contnet_mm.benchmark.plan import NETWORKS, Case, Size
from contnet_mm.benchmark.run import Benchmark, Result, iterations_for


def make_case(network, mode='eager'):
    return Case(network, mode, 'float32', Size(1, 64, 64), 'inference', 'cpu')


class MadeStep:
    """Stands in for a step: takes a made-up time, or fails."""

    seconds = {
        ('resnet50', 'contiguous'): 0.4,
        ('resnet50', CHANNELS_LAST): 0.3,
        ('contnet-ti', 'contiguous'): 0.1,
    }

    def __init__(self, case, setting):
        self.case, self.setting, self.calls = case, setting, 0
        if (case.network, setting.memory_format) not in self.seconds:
            raise RuntimeError('cannot be built')

    def first(self):
        return 1.0

    def time(self, iterations):
        self.calls += 1
        return self.seconds[self.case.network, self.setting.memory_format]


@pytest.fixture
def made_steps(monkeypatch):
    monkeypatch.setattr(run, 'Step', MadeStep)
    settings = [Setting('torchvision'), Setting('torchvision', CHANNELS_LAST)]
    monkeypatch.setattr(run, 'list_settings', lambda network: settings)


@pytest.fixture
def run_made(made_steps, tmp_path):
    """Run three networks, one of which cannot be built, and return what was measured."""

    def run_cases(modes=('eager',), rounds=3, quick=False):
        networks = ('resnet50', 'swin-t', 'contnet-ti')
        cases = [make_case(network, mode) for network in networks for mode in modes]
        path = tmp_path / 'benchmark.json'
        benchmark = Benchmark(path, {}, rounds, with_memory=False, quick=quick)
        benchmark.run(cases)
        return benchmark.results

    return run_cases


@pytest.mark.parametrize(('seconds', 'iterations'), [(0.05, 4), (0.03, 7), (0.5, 1)])
def test_a_measurement_takes_at_least_the_wanted_time(seconds, iterations):
    assert iterations_for(seconds, 0.2) == iterations


def test_fastest_setting_is_timed_and_a_failing_network_is_kept_as_failed(run_made, capsys):
    resnet, swin, ours = run_made()
    assert resnet.setting == 'torchvision, channels_last' and resnet.seconds == [0.3] * 3
    assert [trial['ms'] for trial in resnet.trials] == [400, 300]
    assert swin.error == 'torchvision, contiguous: RuntimeError: cannot be built'
    assert swin.seconds == []
    # One of its settings fails, which does not matter.
    assert ours.seconds == [0.1] * 3 and ours.error is None and ours.iterations == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if 'swin-t' in line and 'failed' in line]
    assert sum(line.startswith('round') for line in lines) == 3


@pytest.mark.parametrize('quick, compiled', [(False, 2), (True, 1)])
def test_quick_compiles_the_setting_alone_that_was_the_fastest_eagerly(run_made, quick, compiled):
    results = run_made(modes=('eager', 'compiled'), quick=quick)
    resnet = [result for result in results if result.case.network == 'resnet50']
    assert [len(result.trials) for result in resnet] == [2, compiled]
    assert {result.setting for result in resnet} == {'torchvision, channels_last'}


def test_a_case_that_fails_in_a_round_is_failed_and_the_others_go_on(run_made, monkeypatch):
    def time(self, iterations):
        self.calls += 1
        if self.case.network == 'resnet50' and self.calls > 6:
            raise RuntimeError('out of memory')
        return 0.1

    monkeypatch.setattr(MadeStep, 'time', time)
    resnet, _, ours = run_made(rounds=4)
    assert 'out of memory' in resnet.error and len(resnet.seconds) < 4
    assert len(ours.seconds) == 4 and ours.error is None


def test_an_interrupted_round_leaves_a_valid_file_of_the_rounds_before(tmp_path):
    path, calls = tmp_path / 'benchmark.json', []

    class Step:
        def time(self, iterations):
            calls.append(iterations)
            if len(calls) == 6:  # the second of the third round
                raise KeyboardInterrupt
            return 0.1

    results = [Result(make_case(network), iterations=1) for network in ('resnet50', 'contnet-ti')]
    benchmark = Benchmark(path, dict(format=2), rounds=9, results=results)
    with pytest.raises(KeyboardInterrupt):
        benchmark.time_rounds({result: Step() for result in results})
    content = json.loads(path.read_text())
    assert content['format'] == 2
    assert [result['seconds'] for result in content['results']] == [[0.1, 0.1]] * 2
    assert content['results'][0]['case']['network'] == 'resnet50'
    assert [*tmp_path.iterdir()] == [path]


def test_order_is_shuffled_in_each_round_and_repeatable(tmp_path):
    def order(seed):
        called = []

        class Step:
            def __init__(self, case):
                self.case = case

            def time(self, iterations):
                called.append(self.case)
                return 0.1

        cases = [make_case(network) for network in NETWORKS[:5]]
        steps = {Result(case, iterations=1): Step(case) for case in cases}
        Benchmark(tmp_path / 'benchmark.json', {}, 6, seed).time_rounds(steps)
        rounds = [tuple(called[i : i + 5]) for i in range(0, 30, 5)]
        assert all(set(found) == set(cases) for found in rounds)
        return rounds

    assert order(0) == order(0) != order(1)
    assert len(set(order(0))) > 1
