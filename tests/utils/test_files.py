import pytest

from contnet_mm.utils.errors import first_line
from contnet_mm.utils.files import write_file


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path):
    path = tmp_path / 'a' / 'b.txt'
    write_file(path, 'é')
    write_file(path, b'new')
    assert path.read_bytes() == b'new' and [*path.parent.iterdir()] == [path]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    path = tmp_path / 'folder'
    path.mkdir()
    with pytest.raises(OSError):
        write_file(path, 'x')
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ('error', 'line'),
    [(ValueError('a\nb'), 'a'), (ValueError('\n a'), 'a'), (ValueError(), 'ValueError')],
)
def test_an_error_is_told_in_one_line(error, line):
    assert first_line(error) == line
