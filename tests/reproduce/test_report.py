"""Expected against got, on pages, in metafiles and in a picture."""

import pytest
import yaml

from contnet_mm.reproduce.launch import Cluster
from contnet_mm.reproduce.report import draw_report, is_bad, make_report, render_report
from contnet_mm.reproduce.rows import list_tables, read_rows
from contnet_mm.reproduce.run import make_trials
from contnet_mm.reproduce.save import save_report
from tests.helpers import ROOT


@pytest.fixture
def make(root, tmp_path):
    """Return a function that makes a report of given results of the row with a published value."""

    def make(*values, errors=False, names=('second', 'first')):
        trials = make_trials(
            [row for row in read_rows('tiny', root=root) if row.name in names],
            range(max(len(values), 1)),
            Cluster(0),
            tmp_path / f'work {values}',
            root=root,
        )
        for trial in trials:
            if trial.seed < len(values):
                trial.folder.finish('train', dict(checkpoint='epoch_3.pth'))
                top1 = values[trial.seed]
                trial.folder.finish('test', dict(metrics={'Top 1 Accuracy': top1}))
        failed = {trials[0].folder.path.name: 'the reason\nand more'} if errors else {}
        return make_report(trials, ['baseline'], dict(errors=failed, baselines={}))

    return make


@pytest.mark.parametrize(
    ('values', 'verdict'),
    [
        ((60.0,), 'within'),
        ((59.71,), 'within'),
        ((60.3, 59.7), 'within'),
        ((59.6,), 'below'),
        ((60.0, 59.0), 'below'),
        ((61.0,), 'above'),
        ((), 'not run'),
    ],
)
def test_the_mean_over_seeds_is_judged_by_the_tolerance(make, values, verdict):
    report = make(*values)
    assert report['rows'][0]['verdict'] == verdict
    assert is_bad(report) == (verdict == 'below')
    assert report['rows'][1]['verdict'] == ('measured' if values else 'not run')


def test_an_expected_value_that_was_not_measured_fails_its_row(make, root):
    metafile = root / 'configs/tiny/metafile.yml'
    metafile.write_text(metafile.read_text() + '    mask AP: 30.0\n')
    report = make(60.0)
    assert report['rows'][0]['verdict'] == 'failed' and is_bad(report)


def test_a_failed_seed_fails_its_row(make):
    report = make(60.0, 60.0, errors=True)
    assert report['rows'][0]['verdict'] == 'failed' and is_bad(report)
    assert '- second, seed 0: the reason\n' in render_report(report)


def test_the_page_shows_spread_difference_and_what_was_left_out(make):
    text = render_report(make(60.5, 59.1))
    line = (
        '| tiny | second | Top 1 Accuracy | 60 |  | 59.80 ± 0.99 (2 seeds) | -0.20 (tolerance 0.3) '
    )
    assert line in text
    assert 'Left out: baseline.' in text and '- PyTorch: ' in text


def test_values_are_saved_once_into_page_and_metafile(make, root):
    report, folder = make(60.5, 59.1), root / 'configs/tiny'
    before = (folder / 'README.md').read_text().splitlines()
    assert {path.name for path in save_report(report, root)} == {'README.md', 'metafile.yml'}
    after = (folder / 'README.md').read_text().splitlines()
    assert after[4] == '| A | [first](./first.py) |  | 59.80 ± 0.99 (2 seeds) |'
    assert after[5] == '| B | [second](./second.py) | 60.0 | 59.80 ± 0.99 (2 seeds) |'
    assert before[:4] + before[6:] == after[:4] + after[6:]
    entry = yaml.safe_load((folder / 'metafile.yml').read_text())['Models'][1]
    assert entry['Results'][0]['Metrics'] == {'Top 1 Accuracy': 59.8}
    assert entry['Measured']['Seeds'] == [0, 1]
    assert entry['Measured']['Spread'] == {'Top 1 Accuracy': 0.99}
    rows = {row.name: row.expected()['Top 1 Accuracy'] for row in read_rows('tiny', root=root)}
    assert rows == {'first': (59.8, pytest.approx(2.97)), 'second': (60.0, 0.3)}
    assert save_report(report, root) == []


@pytest.mark.parametrize('errors', [False, True])
def test_a_row_that_is_not_finished_is_not_saved(make, root, errors):
    report = make(*([60.0] if errors else []), errors=errors)
    before = [path.read_text() for path in sorted((root / 'configs/tiny').iterdir())]
    with pytest.raises(ValueError, match='second.* did not come to an end: nothing was saved'):
        save_report(report, root)
    assert before == [path.read_text() for path in sorted((root / 'configs/tiny').iterdir())]


def test_a_page_without_the_row_is_refused_before_anything_is_written(make, root):
    page = root / 'configs/tiny/README.md'
    page.write_text(page.read_text().replace('[second]', '[renamed]').replace('second.py', 'x.py'))
    before = page.read_text()
    with pytest.raises(ValueError, match='has no line of second'):
        save_report(make(60.0), root)
    assert page.read_text() == before


@pytest.mark.parametrize('table', list_tables())
def test_metafiles_of_ours_are_written_back_as_they_are(table):
    text = (ROOT / 'configs' / table / 'metafile.yml').read_text()
    assert (
        yaml.safe_dump(yaml.safe_load(text), sort_keys=False, allow_unicode=True, width=1000)
        == text
    )


def test_the_picture_is_drawn_whatever_is_there(make, tmp_path):
    for i, values in enumerate([(), (60.0,), (60.5, 59.1)]):
        path = tmp_path / 'pictures' / f'{i}.png'
        draw_report(make(*values), path)
        assert path.read_bytes().startswith(b'\x89PNG')
        assert [*path.parent.glob('.*')] == []
