import pytest

from contnet_mm.utils.markdown import make_table, renew_page


def test_cells_cannot_break_a_table():
    table = make_table(('name', 'n', 'm'), [('a|b\nc', 1, 2.5)], numbers=2)
    assert table == '| name | n | m |\n| --- | ---: | ---: |\n| a\\|b c | 1 | 2.5 |\n'


def test_a_page_gets_each_of_its_tables_anew(tmp_path):
    page = tmp_path / 'x.md'
    marks = '<!-- t: begin\n x y\n-->\n{}<!-- t: end -->\nb\n<!-- t: begin -->\n{}<!-- t: end -->\n'
    page.write_text(marks.format('old\n', ''))
    assert renew_page(page, 't', '[{}]\n'.format) == marks.format('[x y]\n', '[]\n')


@pytest.mark.parametrize(
    'text', ['', '<!-- t: begin -->\n', '<!-- t: end -->\n', '<!-- t: end -->\n<!-- t: begin -->\n']
)
def test_a_page_without_a_pair_of_marks_is_refused(tmp_path, text):
    page = tmp_path / 'x.md'
    page.write_text(text)
    with pytest.raises(ValueError, match=r'x.md has \d times "<!-- t: begin'):
        renew_page(page, 't', str)


def test_a_page_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match='x.md is no file'):
        renew_page(tmp_path / 'x.md', 't', str)
