"""The folder of a row and a seed."""

from pathlib import Path

from contnet_mm.reproduce.state import RowFolder, compute_fingerprint


def test_the_fingerprint_tells_configs_apart_and_not_their_order():
    one = compute_fingerprint(dict(a=1, b=dict(c=[1, 2])))
    assert one == compute_fingerprint(dict(b=dict(c=[1, 2]), a=1))
    assert one != compute_fingerprint(dict(a=1, b=dict(c=[2, 1])))
    assert len({RowFolder(Path(), 'row', 0, x).path for x in (one, 'b' * 64)}) == 2


def test_the_last_checkpoint_is_the_one_that_the_hook_has_noted(tmp_path):
    folder = RowFolder(tmp_path, 'row', 0, 'f' * 64)
    folder.train_dir.mkdir(parents=True)
    (folder.train_dir / 'epoch_2.pth').touch()
    assert folder.find_checkpoint() is None
    (folder.train_dir / 'last_checkpoint').write_text('somewhere/epoch_1.pth')
    assert folder.find_checkpoint() is None
    (folder.train_dir / 'epoch_1.pth').touch()
    assert folder.find_checkpoint() == folder.train_dir / 'epoch_1.pth'
