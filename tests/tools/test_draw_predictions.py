"""tools/draw_predictions.py draws truth beside predictions for each library."""

import runpy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from contnet_mm.datasets.demo import DemoOptions, make_demo_data
from tests.helpers import ROOT, run_tool
from tests.synthetic import build_model

plt = pytest.importorskip('matplotlib.pyplot')
coco_mask = pytest.importorskip('pycocotools.mask')

TOOL = ROOT / 'tools' / 'draw_predictions.py'
NAMES = [
    'mask-rcnn_contnet-ti_fpn_demo',
    'pspnet_contnet-ti-d8_demo-cityscapes',
    'contnet-ti_demo-imagenet',
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('unrelated')
    make_demo_data(folder / 'data' / 'demo', DemoOptions(num_train=1, num_val=3))
    return folder


@pytest.mark.parametrize('name', NAMES)
def test_truth_and_predictions_are_drawn(folder, name):
    path = ROOT / 'configs' / 'demo' / f'{name}.py'
    model = build_model(Config.fromfile(path))
    torch.save(dict(state_dict=model.state_dict()), folder / f'{name}.pth')
    words = (path, folder / f'{name}.pth', '--out', 'seen.png', '--num', 2, '--score-thr', 0.1)
    result = run_tool('draw_predictions', *words, cwd=folder)
    assert result.stdout.endswith('seen.png\n')
    picture = np.asarray(Image.open(folder / 'seen.png').convert('RGB'))
    # Two pairs in one row: four panels, none of them empty.
    for panel in np.array_split(picture, 4, axis=1):
        assert panel.std() > 10


@pytest.fixture(scope='module')
def tool():
    return SimpleNamespace(**runpy.run_path(str(TOOL)))


def test_a_missing_data_set_is_named(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config.fromfile(ROOT / 'configs' / 'demo' / f'{NAMES[0]}.py')
    with pytest.raises(ValueError, match=r'data set of the config is missing: .*instances_val'):
        tool.build_dataset(config, 'val')


# Rows 2 to 4 and columns 1 to 5 of a mask of 8 by 10, in each form that COCO has.
POLYGON = [1, 2, 6, 2, 6, 5, 1, 5]
LENGTHS = [10, 3, 5, 3, 5, 3, 5, 3, 5, 3, 35]  # column by column, from outside


@pytest.mark.parametrize(
    'given',
    [
        [POLYGON],
        [[1, 2, 4, 2, 4, 5, 1, 5], [4, 2, 6, 2, 6, 5, 4, 5], [1, 2, 4, 4]],
        dict(size=[8, 10], counts=LENGTHS),
        coco_mask.frPyObjects(dict(size=[8, 10], counts=LENGTHS), 8, 10),
    ],
    ids=['polygon', 'polygons', 'run lengths', 'compressed'],
)
def test_masks_are_decoded_in_every_form(tool, given):
    expected = np.zeros((8, 10))
    expected[2:5, 1:6] = 1
    assert (tool.decode_mask(given, 8, 10) == expected).all()


@pytest.mark.parametrize('given', [None, [], [[1, 2, 4, 4]]])
def test_nothing_and_what_is_no_polygon_is_no_mask(tool, given):
    assert tool.decode_mask(given, 8, 10) is None


def test_crowds_are_left_out_of_the_truth(tool):
    kept = dict(bbox_label=1, bbox=[1, 2, 6, 5], ignore_flag=0, mask=[POLYGON])
    crowd = dict(kept, ignore_flag=1, mask=dict(size=[8, 10], counts=LENGTHS))
    [(label, box, score, mask)] = tool.truth_objects(
        dict(height=8, width=10, instances=[crowd, kept])
    )
    assert (label, box, score, mask.sum()) == (1, [1, 2, 6, 5], None, 15)


def test_a_mask_of_a_polygon_is_drawn(tool):
    figure = plt.figure(figsize=(1, 1))
    axes = figure.add_axes((0, 0, 1, 1))
    box = [0, 0, 39, 39]
    mask = tool.decode_mask([[10, 10, 30, 10, 30, 30, 10, 30]], 40, 40)
    shown = []
    for objects in ([], [(0, box, None, None)], [(0, box, None, mask)]):
        axes.clear()
        tool.draw_objects(axes, np.zeros((40, 40, 3), np.uint8), objects, ('thing',))
        figure.canvas.draw()
        shown.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int))
    plt.close(figure)
    size = len(shown[0])
    middle = slice(size // 5, -size // 5)  # between the sides of the box, around the mask
    new = np.abs(shown[2] - shown[1]).sum(-1)[middle, middle]
    assert shown[0].std() == 0 and (new > 0).any() and new[len(new) // 2, len(new) // 2] == 0


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['nowhere.py', str(TOOL), '--out', 'a.txt'], '--out must end in .png, got a.txt'),
        (['nowhere.py', 'x.pth'], 'x.pth is no file'),
        (['nowhere.py', str(TOOL)], 'nowhere.py is neither a file'),
        (['nowhere.py', str(TOOL), '--num', 0], '--num must be at least 1, got 0'),
    ],
)
def test_bad_input_is_named(folder, arguments, message):
    result = run_tool('draw_predictions', *arguments, cwd=folder)
    assert result.returncode == 2 and message in result.stderr
