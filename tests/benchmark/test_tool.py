"""The script of the benchmark: what it writes, survives and refuses."""

import json

import pytest

from contnet_mm.benchmark.run import Benchmark, Result
from tests.helpers import ROOT, run_tool


def test_script_writes_results_and_tables_without_local_paths(tmp_path, monkeypatch):
    words = ['--sizes', '64x64', '--modes', 'eager', '--dtypes', 'float32', '--rounds', '1']
    words += ['--networks', 'contnet-ti', 'resnet50', '--no-memory']
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', 'is put back after the test')
    result = run_tool('benchmark', *words, f'--out-dir={tmp_path}', '--device', 'cpu')
    assert result.returncode == 0
    assert '[1/2] 1x64x64 inference contnet-ti eager float32: ' in result.stdout
    content = json.loads((tmp_path / 'benchmark.json').read_text())
    results = content.pop('results')
    passes = [result['case']['pass_name'] for result in results]
    assert passes == ['inference'] * 2 + ['training'] * 2
    assert all(len(result['seconds']) == 1 for result in results)
    assert content['command'] == f'python tools/benchmark.py {" ".join(words)} --device cpu'
    page = (tmp_path / 'benchmark.md').read_text()
    assert '### 1x64x64, training' in page
    for name in ('CPU', 'threads', 'commit', 'PyTorch', 'TorchVision'):
        assert f'| {name} | {content[name]} |' in page
    assert not [value for value in content.values() if str(ROOT) in str(value)]
    assert '/' not in ''.join(map(str, content.values())).replace('tools/benchmark.py', '')


def test_script_that_is_interrupted_writes_what_is_done_and_says_so(tmp_path, monkeypatch):
    def run(self, cases):
        self.results += [Result(cases[0], seconds=[1.0]), Result(cases[1])]
        self.save()
        raise KeyboardInterrupt

    monkeypatch.setattr(Benchmark, 'run', run)
    words = ['--sizes', '64x64', '--networks', 'resnet50', '--device', 'cpu']
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', 'is put back after the test')
    result = run_tool('benchmark', *words, '--out-dir', tmp_path)
    assert result.returncode == 130 and 'interrupted' in result.stderr
    content = json.loads((tmp_path / 'benchmark.json').read_text())
    assert content['results'][0]['seconds'] == [1.0]
    assert '*not run*' in (tmp_path / 'benchmark.md').read_text()
    assert {path.name for path in tmp_path.iterdir()} == {'benchmark.json', 'benchmark.md'}


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--networks', 'resnet18'], "invalid choice: 'resnet18' (choose from"),
        (['--modes', 'fast'], "invalid choice: 'fast' (choose from"),
        (['--sizes', '31x64'], "size '31x64': "),
        (['--rounds', '0'], '--rounds must be at least 1, got 0'),
        (['--device', 'cpu', '--dtypes', 'tf32'], "dtype 'tf32' needs a CUDA device"),
        (['--passes', 'training', '--dtypes', 'bfloat16-pure'], 'nothing to run'),
    ],
)
def test_script_names_what_is_wrong(words, message, tmp_path):
    result = run_tool('benchmark', *words, '--out-dir', tmp_path)
    assert result.returncode == 2 and message in result.stderr
    assert not list(tmp_path.iterdir())
