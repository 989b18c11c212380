"""From configs, weights and images of the three libraries to pictures, and what is refused."""

import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import contnet_mm
from contnet_mm.apis.config import read_config
from contnet_mm.apis.inference import read_image, write_picture
from contnet_mm.visualization import show
from contnet_mm.visualization.activation import ClassScores
from contnet_mm.visualization.prepare import normalise, prepare_image
from tests.helpers import run_tool
from tests.thin_models import TASKS, make_model

SIZE = (90, 70)  # height and width
COLOUR = (200, 160, 40)  # RGB


pytestmark = pytest.mark.usefixtures('nothing_stays')


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 40, (*SIZE, 3), np.uint8)
    path = tmp_path / 'image.png'
    write_picture(pixels + np.array(COLOUR, np.uint8), path)
    return path


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_visible() and axes.get_title()]


@pytest.mark.parametrize('scope', TASKS)
def test_an_image_comes_to_the_network_as_in_a_test(scope, image, tmp_path):
    path, _ = make_model(tmp_path, scope)
    config = read_config(path)
    model = contnet_mm.get_model(config)
    prepared = prepare_image(config, model, image)
    height, width, _ = prepared.pixels.shape
    assert abs(prepared.pixels.mean((0, 1)) - COLOUR - 19.5).max() < 2  # RGB
    # Normalised by ImageNet's statistics; padded at the bottom and on the right, if at all.
    part = prepared.inputs[0, :, :height, :width]
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    expected = (torch.from_numpy(prepared.pixels) - mean) / std
    assert torch.allclose(part.permute(1, 2, 0), expected, atol=1e-4)
    assert torch.allclose(normalise(model, prepared.pixels[None])[..., :height, :width], part)


def test_attention_is_drawn_for_each_stage_with_weights_of_the_backbone_alone(image, tmp_path):
    config, checkpoint = make_model(tmp_path, 'mmdet')
    whole = torch.load(checkpoint, weights_only=True)['state_dict']
    backbone = {k.removeprefix('backbone.'): v for k, v in whole.items() if 'backbone.' in k}
    torch.save(backbone, checkpoint)
    figure = show.show_attention(config, checkpoint, image)
    name, *stages = titles(figure)
    assert name == 'mmdet\nweights: mmdet.pth'
    assert [title.partition('\n')[0] for title in stages] == [f'stage {i}' for i in range(1, 5)]
    result = run_tool('visualize', 'attention', config, checkpoint, image, '--point', '5', '9')
    assert result.stdout.splitlines()[-1] == 'attention.png'
    assert read_image('attention.png').shape[1] > 500


def test_random_weights_are_called_random_and_given_ones_by_their_file(image, tmp_path):
    config, checkpoint = make_model(tmp_path, 'mmpretrain')
    networks = [(config, checkpoint), (config, None)]
    figure = show.show_fields(networks, image, number=1, side=64)
    names = [axes.get_ylabel().rpartition('\n\n')[0] for axes in figure.axes if axes.get_ylabel()]
    assert names[:2] == ['mmpretrain\nweights: mmpretrain.pth', 'mmpretrain\nrandom weights']
    strides = [title.partition('\n')[0] for title in titles(figure)]
    assert strides == [f'stride {stride}' for stride in (4, 8, 16, 32)] * 2
    assert all('95% in' in title for title in titles(figure))


def test_res_50_stands_beside_by_default(image, tmp_path, monkeypatch):
    config, checkpoint = make_model(tmp_path, 'mmseg')
    drawn = []
    monkeypatch.setattr(show, 'draw_fields', lambda *a: drawn.append(a) or Figure())
    options = ['--number', '1', '--side', '64', '--out', 'new/fields.png']
    run_tool('visualize', 'erf', config, checkpoint, image, *options)
    [(networks, number)] = drawn
    assert [name for name, *_ in networks] == [
        'mmseg\nweights: mmseg.pth',
        'resnet50_8xb32_in1k\nrandom weights',
    ]
    assert [strides for *_, strides in networks] == [[4, 8, 8, 8], [4, 8, 16, 32]]
    assert number == 1 and (tmp_path / 'new' / 'fields.png').is_file()


@pytest.mark.parametrize('scope', TASKS)
def test_scores_are_those_of_the_model_and_depend_on_the_tapped_map(scope, image, tmp_path):
    path, checkpoint = make_model(tmp_path, scope, winner=7)
    config = read_config(path)
    model = contnet_mm.get_model(config, checkpoint)
    prepared = prepare_image(config, model, image)
    last = 1 if scope == 'mmpretrain' else 4
    scores, maps = ClassScores(model, prepared, last), []
    scores.tap.register_forward_hook(lambda module, args, x: maps.append(x))
    found = scores(prepared.inputs)
    assert found.shape == (1, 19 if scope == 'mmseg' else 10)
    assert int(found.argmax()) == int(scores.predict().argmax()) == 7
    out = model(prepared.inputs, prepared.data_samples, mode='tensor')
    expected = {
        'mmpretrain': lambda: out[0, 7],
        'mmseg': lambda: out[0, 7].sum(),  # that class everywhere
        'mmdet': lambda: max(float(x.unflatten(1, (-1, 10))[:, :, 7].max()) for x in out[0]),
    }[scope]()
    assert float(found[0, 7]) == pytest.approx(float(expected), rel=1e-5)
    (grad,) = torch.autograd.grad(found[0, 7], maps[-1])
    assert grad.shape == maps[-1].shape and grad.abs().max() > 0
    assert not model.backbone._forward_hooks


def test_class_activation_is_that_of_grad_cam(image, tmp_path, monkeypatch):
    pytest.importorskip('pytorch_grad_cam')
    from contnet_mm.visualization.activation import class_activation

    path, checkpoint = make_model(tmp_path, 'mmpretrain')
    config = read_config(path)
    model = contnet_mm.get_model(config, checkpoint)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    prepared = prepare_image(config, model, image)
    found = class_activation(ClassScores(model, prepared), 3)
    [x] = model.backbone(prepared.inputs)
    (grad,) = torch.autograd.grad(model.head(model.neck((x,)))[0, 3], x)
    heat = (grad.mean((2, 3), keepdim=True) * x).sum(1).relu()[0].detach().numpy()
    assert found.shape == prepared.pixels.shape[:2]
    # Four values, of which the library makes a picture; at its corners they are what they were.
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    corners = found[np.ix_([0, -1], [0, -1])]
    assert heat.shape == (2, 2) and np.abs(corners - heat).max() < 1e-3
    with pytest.raises(ValueError, match='map 1 of the backbone has no say in'):
        config.model.backbone.out_indices = (0, 3)
        model = contnet_mm.get_model(config)
        class_activation(ClassScores(model, prepared, 1), 3)


@pytest.mark.parametrize('scope', TASKS)
def test_class_activation_is_drawn_in_every_library(scope, image, tmp_path):
    pytest.importorskip('pytorch_grad_cam')
    config, checkpoint = make_model(tmp_path, scope, winner=7)
    if scope == 'mmseg':  # as it was made, all of the map speaks against the class
        content = torch.load(checkpoint, weights_only=True)
        content['state_dict']['decode_head.conv_seg.weight'][7] *= -1
        with pytest.raises(ValueError, match='nothing in map 4 of the backbone speaks for'):
            show.show_activation(config, checkpoint, image)
        torch.save(content, checkpoint)
    figure = show.show_activation(config, checkpoint, image)
    level = 1 if scope == 'mmpretrain' else 4
    classes = contnet_mm.get_model(str(config)).dataset_meta.get('classes')
    name = classes[7] if classes else 'class 7'
    share = ' of the pixels' if scope == 'mmseg' else ''
    what = f'{name}: 100%{share}\nby map {level} of the backbone'
    assert titles(figure) == [f'{scope}\nweights: {scope}.pth', what]
    words = ('cam', config, checkpoint, image, '--category', '7', '--out', 'seven.png')
    assert run_tool('visualize', *words).returncode == 0
    assert read_image('seven.png').shape[1] > 400


def test_the_last_map_that_speaks_for_the_class_is_drawn(image, tmp_path, monkeypatch):
    def activation(scores, category):
        if scores.level > 2:
            raise ValueError(f'nothing in map {scores.level}')
        return np.full(scores.image.pixels.shape[:2], 0.5)

    monkeypatch.setattr(show, 'class_activation', activation)
    config, checkpoint = make_model(tmp_path, 'mmdet', winner=7)
    figure = show.show_activation(config, checkpoint, image)
    assert titles(figure)[1] == '7: 100%\nby map 2 of the backbone'
    with pytest.raises(ValueError, match='nothing in map 3'):
        show.show_activation(config, checkpoint, image, level=3)


def test_without_grad_cam_the_command_that_installs_it_is_named(image, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    config, checkpoint = make_model(tmp_path, 'mmpretrain')
    result = run_tool('visualize', 'cam', config, checkpoint, image)
    assert result.returncode == 2 and 'maps need the library grad-cam' in result.stderr
    assert result.stderr.rstrip().endswith('pip install grad-cam')
    assert not (tmp_path / 'cam.png').exists()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['attention', 'no_such', 'image.png'], 'no_such is neither a file'),
        (['attention', 'mmdet.py', 'no.pth', 'image.png'], 'checkpoint no.pth does not exist'),
        (['attention', 'mmdet.py', 'no.png'], 'no.png is no file; give an image'),
        (['attention', 'mmdet.py', 'image.png', '--out', 'a.jpg'], '--out must end in .png'),
        (['attention', 'mmdet.py', 'image.png', '--point', '0', '999'], 'point 0 999 is not in'),
        (['attention', 'empty.py', 'image.png'], 'the model of empty.py has no backbone'),
        (['cam', 'mmdet.py', 'image.png', '--category', 'yak'], "a number below 10, got 'yak'"),
        (['cam', 'blind.py', 'image.png'], 'blind.py detects nothing in image.png; name a class'),
        (['cam', 'mmdet.py', 'image.png', '--level', '5'], 'level must be from 1 to 4, got 5'),
        (['erf', 'mmdet.py', 'image.png', '--side', '100'], 'a multiple of 64, got 100'),
        (['erf', 'mmdet.py', 'folder'], 'folder holds no file that ends in one of'),
    ],
)
def test_what_is_wrong_is_named(words, message, image, tmp_path):
    make_model(tmp_path, 'mmdet')
    (tmp_path / 'empty.py').write_text("default_scope = 'mmdet'")
    blind = "_base_ = 'mmdet.py'\nmodel = dict(test_cfg=dict(score_thr=1.0))\n"
    (tmp_path / 'blind.py').write_text(blind)
    (tmp_path / 'folder').mkdir()
    result = run_tool('visualize', *words)
    assert result.returncode == 2 and message in result.stderr
    assert not [*tmp_path.glob('*.jpg'), *tmp_path.glob('[!i]*.png')]
