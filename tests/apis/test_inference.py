"""Images through the inferencer of each library: the pictures, the lines, the refusals."""

import os
import re
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from contnet_mm.apis.config import read_config
from contnet_mm.apis.inference import (
    load_inferencer,
    open_source,
    predict_image,
    read_image,
    write_picture,
)
from contnet_mm.apis.model_zoo import list_models
from contnet_mm.checkpoint.read import read_checkpoint
from tests.helpers import ROOT, RunsCode, run_tool
from tests.thin_models import TASKS, make_model, own_model_hub

SIZE = (90, 70)  # height and width
COLOUR = (220, 160, 40)  # RGB; even, since the visualizers resample what is fine

DOC_BLOCKS = re.findall(
    r'```python\n(.*?)```', (ROOT / 'docs' / 'inference.md').read_text(), re.DOTALL
)
DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


pytestmark = pytest.mark.usefixtures('nothing_stays')


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    write_picture(np.full((*SIZE, 3), COLOUR, np.uint8), path)
    return path


def make_video(path):
    """Write a video of three frames in one colour."""
    height, width = SIZE
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 5, (width, height))
    for _ in range(3):
        video.write(np.full((height, width, 3), COLOUR[::-1], np.uint8))
    video.release()
    return path


@pytest.mark.parametrize(
    ('scope', 'line'),
    [('mmdet', 'three 1.000 box'), ('mmseg', 'wall 100.0%'), ('mmpretrain', 'three 1.000')],
)
def test_script_draws_and_prints_what_each_library_predicts(scope, line, image, tmp_path):
    meta = None if scope == 'mmseg' else {'dataset_meta': {'classes': DIGITS}}
    config, checkpoint = make_model(tmp_path, scope, meta=meta)
    out = tmp_path / 'new' / 'picture.png'
    args = [image, config, checkpoint, '--out', out, '--device', 'cpu']
    lines = run_tool('image_demo', *args).stdout.splitlines()
    assert any(text.startswith(line) for text in lines) and lines[-1] == str(out)
    assert not any('Inference' in text for text in lines)  # a progress bar
    picture = read_image(out)
    assert picture.shape == (*SIZE, 3)
    changed = (np.abs(picture - np.array(COLOUR)) > 1).any(-1).mean()
    assert changed > (0.99 if scope == 'mmseg' else 0.02)
    if scope == 'mmpretrain':  # text in a corner, the rest as it was
        assert changed < 0.5
    assert [path.name for path in out.parent.iterdir()] == ['picture.png']


def test_a_picture_without_detections_is_the_image(image, tmp_path):
    config, checkpoint = make_model(tmp_path, 'mmdet')
    picture, lines = predict_image(image, config, checkpoint, 'cpu', score_thr=1.1)
    assert lines == ['0 objects with a score of at least 1.1']
    assert picture.shape == (*SIZE, 3) and np.abs(picture - np.array(COLOUR)).max() <= 1


def test_segmentation_is_drawn_in_the_colour_of_its_class(image, tmp_path):
    meta = {'dataset_meta': {'classes': tuple('abcdefghijklmnopqrs'), 'palette': None}}
    config, checkpoint = make_model(tmp_path, 'mmseg', winner=0, meta=meta)
    picture, lines = predict_image(image, config, checkpoint, 'cpu')
    assert lines == ['a 100.0%']
    mixed = 0.2 * np.array(COLOUR) + 0.8 * np.array([128, 64, 128])  # the colour of roads
    assert np.abs(picture[60:] - mixed).max() <= 2


@pytest.mark.parametrize('scope', TASKS)
def test_class_names_that_the_file_lacks_come_from_the_config(scope, image, tmp_path):
    config, checkpoint = make_model(tmp_path, scope, winner=7)
    if scope == 'mmpretrain':
        config.write_text(
            config.read_text()
            + f'test_dataloader = dict(dataset=dict(metainfo=dict(classes={DIGITS})))'
        )
    _, lines = predict_image(image, config, checkpoint, 'cpu')
    name = {'mmdet': '7', 'mmseg': 'traffic sign', 'mmpretrain': 'seven'}[scope]
    assert any(line.startswith(f'{name} ') for line in lines)


def test_data_without_class_names_are_refused(image, tmp_path):
    config, checkpoint = make_model(tmp_path, 'mmdet')
    cfg = read_config(config)
    cfg.test_dataloader.dataset.metainfo.classes = None
    with pytest.raises(ValueError, match='neither .*mmdet.pth nor the test data .* the classes'):
        load_inferencer(cfg, checkpoint, 'cpu')


@pytest.mark.parametrize('scope', TASKS)
def test_nothing_opens_the_checkpoint_once_it_is_read_safely(scope, image, tmp_path, monkeypatch):
    def read_and_remove(path):
        content = read_checkpoint(path)
        Path(path).unlink()  # whoever opens it after this ends with an error
        return content

    config, checkpoint = make_model(tmp_path, scope)
    monkeypatch.setattr('contnet_mm.apis.inference.read_checkpoint', read_and_remove)
    predict_image(image, config, checkpoint, 'cpu')
    assert not checkpoint.exists()


def test_a_checkpoint_with_code_is_refused_and_not_run(image, tmp_path):
    config, checkpoint = make_model(tmp_path, 'mmpretrain')
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, 'optimizer': RunsCode(tmp_path / 'ran')}, checkpoint)
    with pytest.raises(ValueError, match='mmpretrain.pth is refused.*mkdir'):
        predict_image(image, config, checkpoint, 'cpu')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda state: {'epoch': 1}, 'holds no state dict'),
        (lambda state: list(state), 'holds a list, not a state dict'),
        (lambda state: {'backbone.x': torch.ones(1)}, r'lacks \d+ of \d+ tensors, .* backbone\.'),
        (lambda state: {'fc.x': torch.ones(1)}, '; 1 of its 1 tensors are not in the model.* fc.x'),
        (lambda state: {**state, 'head.fc.bias': torch.ones(7)}, 'size mismatch for head.fc.bias'),
    ],
)
def test_a_checkpoint_that_does_not_cover_the_model_is_named(change, message, image, tmp_path):
    config, checkpoint = make_model(tmp_path, 'mmpretrain')
    torch.save(change(torch.load(checkpoint, weights_only=True)['state_dict']), checkpoint)
    with pytest.raises(ValueError, match=f'mmpretrain.pth .*{message}'):
        predict_image(image, config, checkpoint, 'cpu')


def test_weights_of_a_distributed_run_load(image, tmp_path):
    config, checkpoint = make_model(tmp_path, 'mmpretrain')
    state_dict = torch.load(checkpoint, weights_only=True)['state_dict']
    # DDP and torch.compile leave their marks in keys; no text in meta ends the load.
    state_dict = {f'module._orig_mod.{key}': value for key, value in state_dict.items()}
    torch.save({'state_dict': state_dict, 'meta': 'text'}, checkpoint)
    _, lines = predict_image(image, config, checkpoint, 'cpu')
    assert lines[0] == 'class 3 1.000'


def test_tensors_that_are_not_in_the_model_are_named(tmp_path):
    config, checkpoint = make_model(tmp_path, 'mmpretrain')
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict']['mask_head.x'] = torch.ones(1)
    torch.save(content, checkpoint)
    with pytest.warns(
        UserWarning, match=r'1 of its \d+ tensors are not in the model.* mask_head.x'
    ):
        load_inferencer(read_config(config), checkpoint, 'cpu')


def test_weights_of_a_network_with_avg_down_are_refused_without(tmp_path):
    config, checkpoint = make_model(tmp_path, 'mmpretrain')
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict']._metadata['backbone']['contnet']['options']['avg_down'] = True
    torch.save(content, checkpoint)
    cfg = read_config(config)
    with pytest.raises(ValueError, match=r'mmpretrain\.pth does not fit .* set avg_down=True'):
        load_inferencer(cfg, checkpoint, 'cpu')
    cfg.model.backbone.avg_down = True
    assert load_inferencer(cfg, checkpoint, 'cpu').model.backbone.avg_down


def test_test_data_inside_a_wrapper_name_classes_and_pipeline(image, tmp_path):
    config, checkpoint = make_model(tmp_path, 'mmseg', winner=7)
    cfg = read_config(config)
    inner = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=inner)
    inferencer = load_inferencer(cfg, checkpoint, 'cpu')
    assert inferencer.model.dataset_meta['classes'][7] == 'traffic sign'
    assert cfg.test_dataloader.dataset.type == 'RepeatDataset'  # as it was
    cfg.test_dataloader = None
    with pytest.raises(ValueError, match='has no test data'):
        load_inferencer(cfg, checkpoint, 'cpu')


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['no.png', 'good.py', 'no.pth'], 'no.png is no file; give an image'),
        (['text.png', 'good.py', 'no.pth'], 'text.png is no image that OpenCV can read'),
        (['empty.png', 'good.py', 'no.pth'], 'empty.png is no image that OpenCV can read'),
        (['image.png', 'no.py', 'no.pth'], 'no.py is neither a file'),
        (['image.png', 'empty.py', 'no.pth'], 'default_scope of empty.py is None'),
        (['image.png', 'good.py', 'no.pth'], 'checkpoint no.pth does not exist'),
        (['image.png', 'good.py', 'text.png'], 'or is no checkpoint'),
        (['image.png', 'good.py', 'no.pth', '--out', 'a.txt'], '--out must end in one of .png'),
        (['image.png', 'good.py', 'no.pth', '--out', './image.png'], 'must be another file'),
        (['image.png', 'good.py', 'no.pth', '--device', 'gpu'], "device 'gpu' cannot be used"),
        (['image.png', 'good.py', 'no.pth', '--device', 'cuda:99'], "'cuda:99' cannot be used"),
    ],
)
def test_script_names_what_is_wrong(args, message, image, tmp_path):
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'empty.png').touch()
    (tmp_path / 'empty.py').touch()
    (tmp_path / 'good.py').write_text("default_scope = 'mmdet'")
    result = run_tool('image_demo', *args)
    assert result.returncode == 2 and message in result.stderr
    assert not (tmp_path / 'image_demo.png').exists()


def test_script_names_a_folder_that_cannot_be_written(image, monkeypatch):
    monkeypatch.setattr(
        'contnet_mm.apis.inference.predict_image', lambda *_: (np.zeros((4, 5, 3), np.uint8), [])
    )
    out = f'{image}/out.png'  # below a file
    result = run_tool('image_demo', image, 'good.py', 'no.pth', '--out', out)
    assert result.returncode == 2 and str(image) in result.stderr


def test_a_folder_is_gone_through_in_order_and_with_a_bar(tmp_path, capsys):
    config, checkpoint = make_model(tmp_path, 'mmseg', winner=7)
    folder = tmp_path / 'photos'
    for name, height in [('b.PNG', 40), ('a.jpg', 36)]:
        path = folder / name.lower()
        write_picture(np.zeros((height, 32, 3), np.uint8), path)
        path.rename(folder / name)
    (folder / 'notes.txt').touch()
    found = load_inferencer(config, checkpoint, 'cpu')(folder)['predictions']
    assert [len(labels) for labels in found] == [36, 40]
    assert 'Inference' in (out := capsys.readouterr().out) and '100%' in out
    with pytest.raises(ValueError, match='text holds no file that ends in .png'):
        (tmp_path / 'text').mkdir()
        load_inferencer(config, checkpoint, 'cpu')(tmp_path / 'text')


@pytest.mark.parametrize('scope', TASKS)
@pytest.mark.parametrize('show_progress', [True, False])
def test_frames_of_a_video_are_drawn_in_their_colours(
    scope, show_progress, tmp_path, monkeypatch, capsys
):
    config, checkpoint = make_model(tmp_path, scope)
    infer = load_inferencer(config, checkpoint, 'cpu', show_progress)
    seen, draw = [], type(infer.model).test_step
    monkeypatch.setattr(
        type(infer.model), 'test_step', lambda self, data: seen.append(data) or draw(self, data)
    )
    drawn = {
        'mmdet': dict(return_vis=True, pred_score_thr=1.1),
        'mmseg': dict(return_vis=True, opacity=0.0, with_labels=False),
        'mmpretrain': dict(show_dir=tmp_path / 'seen'),
    }
    result = infer(make_video(tmp_path / 'video.avi'), batch_size=2, **drawn[scope])
    if scope == 'mmpretrain':
        pictures = [read_image(path) for path in sorted((tmp_path / 'seen').iterdir())]
    else:
        pictures = result['visualization']
    assert len(pictures) == 3 and len(seen) == 2
    for picture in pictures:
        assert np.abs(picture[40:] - np.array(COLOUR)).max() <= 4
    assert ('Inference' in capsys.readouterr().out) == show_progress


@pytest.mark.parametrize('name', ['gone.mp4', 'text.mp4'])
def test_a_video_that_cannot_be_read_is_named(name, tmp_path):
    (tmp_path / 'text.mp4').write_text('no video')
    message = {'gone.mp4': 'gone.mp4 is no file; give', 'text.mp4': 'text.mp4 is no video that'}
    with pytest.raises(ValueError, match=message[name]):
        open_source(name)


def test_images_may_be_paths_and_arrays():
    array = np.zeros((4, 5, 3), np.uint8)
    assert open_source(Path('a.png')) == open_source('a.png') == ['a.png']
    assert open_source([Path('a.png'), array])[0] == 'a.png'
    assert open_source(array)[0] is array


@pytest.mark.parametrize('block', DOC_BLOCKS, ids=lambda block: f'line {block.count(chr(10))}')
def test_the_python_of_the_docs_runs(block, image, tmp_path, capsys, monkeypatch):
    names = [name for name in list_models() if name in block]
    write_picture(read_image(image), tmp_path / 'photos' / 'photo.png')
    make_video(tmp_path / 'video.avi')
    if 'work_dirs' in block:
        scope = read_config(max(names, key=len)).default_scope
        config, checkpoint = make_model(tmp_path, scope)
        block = re.sub(r"'configs/.*?'", repr(str(config)), block)
        block = re.sub(r"'work_dirs/.*?'", repr(str(checkpoint)), block)
        for name in names:
            block = block.replace(repr(name), repr(str(config)))
    monkeypatch.syspath_prepend(ROOT)  # torch.hub puts it there, and takes it away again
    block = block.replace("'contnet_mm', 'contnet_m'", f'{str(ROOT)!r}, "contnet_m"')
    with own_model_hub() if 'register' in block else nullcontext():
        exec(block.replace('photo.jpg', str(image)).replace('video.mp4', 'video.avi'), {})
    assert capsys.readouterr().out or 'Inferencer(' in block


def test_an_interrupted_write_keeps_the_old_picture(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    path = tmp_path / 'picture.png'
    write_picture(np.zeros((4, 5, 3), np.uint8), path)
    before = path.read_bytes()
    monkeypatch.setattr(os, 'fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_picture(np.ones((4, 5, 3), np.uint8), path)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_pictures_keep_their_colours(tmp_path):
    red = np.zeros((4, 5, 3), np.uint8)
    red[..., 0] = 200
    write_picture(red, tmp_path / 'red.png')
    assert (read_image(tmp_path / 'red.png') == red).all()
