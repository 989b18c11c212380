"""The tables of the benchmark, from results that are made up."""

from contnet_mm.benchmark.plan import MULTISCALE, Case, Size
from contnet_mm.benchmark.report import (
    best_result,
    implementation_of,
    render_report,
    show_percentiles,
)
from contnet_mm.benchmark.run import Result

SMALL = Size(1, 64, 64)


def make_result(
    network, seconds=(), mode='eager', dtype='float32', size=SMALL, setting='made up', **changes
):
    case = Case(network, mode, dtype, size, 'inference', 'cpu')
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
    assert best_result(results, 'resnet50') is results[1]
    assert best_result(results, 'resnet50', mode='eager') is results[0]
    assert best_result(results, 'resnet50', dtype='bfloat16') is None


def test_reference_implementation_is_that_of_the_arch():
    names = ['contnet-m', 'contnet-m-cp', 'contnet-ti', 'resnet50', 'plain-m']
    found = [implementation_of(make_result(name)) for name in names]
    assert found == ['plain-m', 'plain-m', 'plain-ti', None, None]


def test_table_divides_by_the_fastest_mode_and_by_the_reference_implementation_in_the_same_mode():
    results = [
        make_result('contnet-m', [0.010, 0.010], memory_mb=12.3),
        make_result('plain-m', [0.020, 0.020]),
        make_result('plain-m', [0.008, 0.008], mode='compiled', compile_s=31.6),
        make_result('resnet50', [0.016, 0.016]),
        make_result('resnet50', [0.005, 0.005], mode='compiled'),
        make_result('resnet50', [0.001, 0.001], dtype='bfloat16'),
    ]
    page = render_report({'rounds': 2}, results, 'resnet50')
    assert '| rounds | 2 |' in page and '### 1x64x64, inference' in page
    rows = rows_of(page)
    ours = rows['contnet-m', 'eager', 'float32']
    assert ours[1:] == ['10 [10-10]', '2 [2-2]', '0.5 [0.5-0.5]', '12', '-']
    assert rows['plain-m', 'compiled', 'float32'][-1] == '32'


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


def test_multiscale_table_shows_passes_and_compiled_graphs():
    options = dict(size=MULTISCALE, mode='dynamic')
    results = [
        make_result('contnet-m', pass_seconds=[9.0, 3.0], graphs=[1, 2, 0], **options),
        make_result('resnet50', pass_seconds=[8.0, 6.0], graphs=[0, 0, 0], size=MULTISCALE),
        make_result('swin-t', error='no', **options),
    ]
    rows = rows_of(render_report({}, results, 'resnet50'))
    ours = rows['contnet-m', 'dynamic', 'float32']
    assert ours[1:] == ['9', '3', '0.5', '1', '2', '0']
    assert rows['swin-t', 'dynamic', 'float32'][1] == '*failed*'
