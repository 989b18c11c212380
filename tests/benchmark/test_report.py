"""The tables of the benchmark, from results that are made up."""

from contnet_mm.benchmark.plan import Case, Size
from contnet_mm.benchmark.report import best_result, render_report, show_percentiles
from contnet_mm.benchmark.run import Result

SMALL = Size(1, 64, 64)


def make_result(network, seconds=(), mode='eager', dtype='float32', setting='made up', **changes):
    case = Case(network, mode, dtype, SMALL, 'inference', 'cpu')
    return Result(case, setting, seconds=[*seconds], **changes)


def rows_of(page):
    """Return the cells of the tables, by network, mode and dtype."""
    lines = [[word.strip() for word in line.split('|')[1:-1]] for line in page.splitlines()]
    return {tuple(words[:3]): words[3:] for words in lines if len(words) > 3}


def test_values_are_shown_as_their_median_and_percentiles():
    assert show_percentiles(range(11)) == '5 [1-9]'
    assert show_percentiles([1234.56]) == '1235 [1235-1235]'


def test_ratio_is_taken_round_by_round():
    # The second round is slow for both: the ratio of the medians would be 1.5.
    results = [make_result('swin-t', [1.0, 30.0, 3.0]), make_result('resnet50', [2.0, 60.0, 1.0])]
    row = rows_of(render_report({}, results, 'resnet50'))['swin-t', 'eager', 'float32']
    assert row[2] == '0.5 [0.5-2.5]'


def test_best_result_has_the_lowest_median_and_did_not_fail():
    results = [
        make_result('resnet50', [3.0, 3.0]),
        make_result('resnet50', [2.0, 2.0], mode='compiled'),
        make_result('resnet50', [1.0], mode='compiled', dtype='bfloat16', error='out of memory'),
        make_result('swin-t', [0.1, 0.1]),
    ]
    assert best_result(results, 'resnet50', 'float32') is results[1]
    assert best_result(results, 'resnet50', 'bfloat16') is None


def test_table_divides_by_the_fastest_mode_of_the_reference_with_the_same_dtype():
    results = [
        make_result('contnet-m', [0.010, 0.010], memory_mb=12.3),
        make_result('resnet50', [0.016, 0.016]),
        make_result('resnet50', [0.005, 0.005], mode='compiled', compile_s=31.6),
        make_result('resnet50', [0.001, 0.001], dtype='bfloat16'),
    ]
    page = render_report({'rounds': 2}, results, 'resnet50')
    assert '| rounds | 2 |' in page and '### 1x64x64, inference' in page
    rows = rows_of(page)
    ours = rows['contnet-m', 'eager', 'float32']
    assert ours[1:] == ['10 [10-10]', '2 [2-2]', '12', '-']
    assert rows['resnet50', 'compiled', 'float32'][-1] == '32'


def test_failed_cases_and_settings_are_shown_with_their_reasons():
    trial = dict(setting='timm, contiguous', ms=None, compile_s=None, error='no such size')
    results = [
        make_result('swin-t', mode='compiled', error='the compiler failed'),
        make_result('resnet50', [1.0, 1.0], trials=[trial], memory_error='not told'),
        make_result('convnext-t'),
    ]
    page = render_report({}, results, 'resnet50')
    rows = rows_of(page)
    assert rows['swin-t', 'compiled', 'float32'][1] == '*failed*'
    assert rows['convnext-t', 'eager', 'float32'][1] == '*not run*'
    assert rows['resnet50', 'eager', 'float32'][-2] == '*failed*'
    assert '- swin-t compiled float32: the compiler failed' in page
    assert 'only the setting timm, contiguous: no such size' in page
    assert '- resnet50 eager float32, its memory: not told' in page
