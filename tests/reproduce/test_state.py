"""What a row has come to survives kills, and torn checkpoints are never taken for whole."""

from pathlib import Path

import torch

from contnet_mm.reproduce.state import RowFolder, compute_fingerprint


def make_folder(tmp_path, *epochs, last=None):
    folder = RowFolder(tmp_path, 'row', 0, 'f' * 64)
    folder.train_dir.mkdir(parents=True)
    for epoch in epochs:
        torch.save({'state_dict': {'x': torch.zeros(9)}}, folder.train_dir / f'epoch_{epoch}.pth')
    if last is not None:
        (folder.train_dir / 'last_checkpoint').write_text(last)
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])
    return path


def test_the_fingerprint_tells_configs_apart_and_not_their_order():
    one = compute_fingerprint(dict(a=1, b=dict(c=[1, 2])))
    assert one == compute_fingerprint(dict(b=dict(c=[1, 2]), a=1))
    assert one != compute_fingerprint(dict(a=1, b=dict(c=[2, 1])))
    assert len({RowFolder(Path(), 'row', 0, x).path for x in (one, 'b' * 64)}) == 2


def test_the_named_checkpoint_is_the_one_even_among_later_ones(tmp_path):
    folder = make_folder(tmp_path, 1, 2, last='somewhere/epoch_1.pth')
    assert folder.find_checkpoint().name == 'epoch_1.pth'


def test_a_torn_checkpoint_gives_way_to_the_last_whole_one(tmp_path):
    folder = make_folder(tmp_path, 2, 9, 10, last='somewhere/epoch_10.pth')
    torn = cut(folder.train_dir / 'epoch_10.pth')
    found = folder.find_checkpoint()
    assert found.name == 'epoch_9.pth' and not torn.exists()
    assert (folder.train_dir / 'last_checkpoint').read_text() == str(found.resolve())


def test_an_empty_record_is_put_right(tmp_path):
    folder = make_folder(tmp_path, 1, 2, last='')
    assert folder.find_checkpoint().name == 'epoch_2.pth'
    assert (folder.train_dir / 'last_checkpoint').read_text().endswith('epoch_2.pth')


def test_without_a_whole_checkpoint_training_starts_anew(tmp_path):
    folder = make_folder(tmp_path, 1, last='epoch_1.pth')
    cut(folder.train_dir / 'epoch_1.pth')
    torch.save({}, folder.train_dir / 'best_coco_bbox_mAP_epoch_1.pth')
    assert folder.find_checkpoint() is None
    assert not (folder.train_dir / 'last_checkpoint').exists()


def test_stages_are_noted_one_by_one(tmp_path):
    folder = make_folder(tmp_path)
    assert folder.read() == {}
    folder.finish('train', dict(checkpoint='epoch_1.pth'))
    folder.finish('test', dict(metrics={}))
    assert set(folder.read()) == {'train', 'test'}
    folder.finish('train', dict(checkpoint='epoch_2.pth'))
    assert folder.read()['train'] == dict(checkpoint='epoch_2.pth')
