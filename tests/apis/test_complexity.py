"""Counting parameters and multiply-adds, and the tables of the pages that show them."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from contnet_mm import ConTNet
from contnet_mm.apis.complexity import (
    Complexity,
    count,
    count_config,
    count_mmdet2,
    find_published,
    make_table,
    renew_tables,
)
from contnet_mm.apis.config import read_config
from tests.helpers import ROOT, run_tool

CONFIGS = ROOT / 'configs'
PAGES = sorted(CONFIGS.glob('*/README.md'))
# Nothing was published about models of blood cells and of the demo, and DINO cannot be counted.
PAGES = [page for page in PAGES if page.parent.name not in ('bccd', 'demo', 'dino')]


def thin_config(path):
    path.write_text(
        "default_scope = 'mmpretrain'\n"
        'model = dict(\n'
        "    type='ImageClassifier',\n"
        "    backbone=dict(type='ResNet', depth=18, num_stages=1, strides=(1,),\n"
        '        dilations=(1,), out_indices=(0,)),\n'
        "    neck=dict(type='GlobalAveragePooling'),\n"
        "    head=dict(type='LinearClsHead', num_classes=10, in_channels=64),\n"
        ')\n'
    )
    return path


def test_convolutions_and_linear_layers_are_counted_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Flatten(2),
        nn.Linear(20, 7, bias=False),
    )
    counted = count(model, torch.zeros(2, 3, 8, 10))
    macs = 2 * 20 * (8 * 3 * 9 + 8 * 2 * 9) + 2 * 8 * 20 * 7
    params = 8 * 3 * 9 + 8 + 8 * 2 * 9 + 8 + 20 * 7
    assert counted == Complexity(params, macs, 0)


@pytest.mark.parametrize('position', ['absolute', 'relative'])
def test_attention_counts_whole_windows(thin_arch, position):
    thin_arch.update(depths=(1, 1, 1, 1), window_sizes=((7, 14),) * 4)
    net = ConTNet(thin_arch, out_indices=(0,), position=position).eval()
    # A map of 15 x 14 is padded to two windows of 14 x 14, and these are eight of 7 x 7.
    products = 2 * 8 * (8 * 49**2 + 2 * 196**2)
    assert count(net, torch.zeros(1, 3, 60, 56)).attention_macs == products


def test_counting_leaves_the_model_as_it_is(thin_arch):
    net = ConTNet(thin_arch)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    count(net, torch.zeros(1, 3, 64, 64))
    assert net.training
    for name, tensor in net.state_dict().items():
        assert tensor.device.type == 'cpu' and torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ('arch', 'params', 'conv_linear', 'total'),
    [
        ('ti', 5.89, 0.87, 1.00),
        ('s', 10.10, 1.49, 1.67),
        ('m', 19.54, 3.09, 3.44),
        ('b', 36.04, 6.37, 7.03),
    ],
)
def test_classifiers_have_the_known_size_and_work(arch, params, conv_linear, total):
    config = read_config(CONFIGS / f'contnet/contnet-{arch}_8xb32_in1k.py')
    counted = count_config(config, (224, 224))
    macs = counted.conv_linear_macs, counted.conv_linear_macs + counted.attention_macs
    assert round(counted.params / 1e6, 2) == params
    assert [round(n / 1e9, 2) for n in macs] == [conv_linear, total]


def test_frozen_parameters_count():
    config = Config.fromfile(CONFIGS / 'retinanet/retinanet_r50_fpn_1x_coco.py')
    free = count_config(config, (64, 64)).params
    config.model.backbone.frozen_stages = 4
    assert count_config(config, (64, 64)).params == free


def test_two_stages_work_on_a_thousand_proposals_and_a_hundred_masks():
    box, mask = (
        count_config(read_config(CONFIGS / folder / f'{name}_r50_fpn_1x_coco.py'), (64, 64))
        for folder, name in (('faster_rcnn', 'faster-rcnn'), ('mask_rcnn', 'mask-rcnn'))
    )
    # Four convolutions, one that doubles the side, the logits of 80 classes.
    per_mask = 4 * 256 * 256 * 9 * 14**2 + 256 * 256 * 28**2 + 256 * 80 * 28**2
    assert mask.conv_linear_macs - box.conv_linear_macs == 100 * per_mask
    one_stage = read_config('mmdet::rpn/rpn_r50_fpn_1x_coco.py')
    per_box = 256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 4 * 80)
    proposing = count_config(one_stage, (64, 64)).conv_linear_macs
    assert box.conv_linear_macs - proposing == 1000 * per_box


# Parameters (M) and FLOPs (G) as the tables print them, each by the config that gives them.
COUNTED = [
    ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco', 41.53, 240.98),
    ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 32.02, 235.75),
    ('faster_rcnn/faster-rcnn_contnet-m_fpn_1x_coco', 36.27, 225.60),
    ('fcos/fcos_contnet-m_fpn_gn-head_1x_coco', 26.84, 228.42),
]


@pytest.mark.parametrize(('name', 'params', 'macs'), COUNTED)
def test_the_published_sizes_of_detectors_are_counted(name, params, macs):
    counted = count_mmdet2(read_config(CONFIGS / f'{name}.py'), (896, 1344))
    assert [round(counted[0] / 1e6, 2), round(counted[1] / 1e9, 2)] == [params, macs]
    published = find_published(name)
    if 'r50-caffe' in name:  # the rows of Res-50 are swapped
        published = find_published('retinanet_r50_fpn_1x_coco')
    assert counted[1] / 1e9 == pytest.approx(published[1], rel=1e-3)
    if 'contnet' in name:  # published with a position vector for each token of a window
        tables = sum(
            2 * channels * sum(p * p - p for p in sizes)
            for channels, sizes in zip((64, 128, 256, 512), ((7, 14),) * 3 + ((7, 7),), strict=True)
        )
        counted = counted[0] + tables, counted[1]
    assert counted[0] / 1e6 == pytest.approx(published[0], rel=3e-3)


def test_weights_that_are_not_there_are_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read_config(CONFIGS / 'pspnet/pspnet_contnet-m-d8_4xb2-40k_cityscapes-512x1024.py')
    assert config.model.backbone.init_cfg.checkpoint
    assert count_config(config, (64, 64)).params > 35e6


def test_a_model_that_asks_for_values_is_named():
    config = read_config('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py')
    with pytest.raises(ValueError, match='DeformableDETR cannot be counted at 64x96'):
        count_config(config, (64, 96))


@pytest.mark.parametrize(
    ('name', 'published'),
    [
        ('configs/contnet/contnet-b_8xb64-strong_in1k.py', (39.6, 6.4)),
        ('retinanet_contnet-m_fpn_adamw-1x_coco.py', (27.0, 217.2)),
        ('retinanet_contnet-ti_fpn_1x_coco.py', None),
        ('contnet-ti_demo-imagenet.py', None),
        ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', (32.2, 242.9)),
    ],
)
def test_published_values_are_found_by_the_name_of_a_config(name, published):
    assert find_published(name) == published


def test_published_values_stand_beside_at_the_usual_size_only():
    name = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
    usual, other = (make_table([name], size).splitlines()[-1] for size in (None, (64, 96)))
    assert usual.startswith('| `resnet18_8xb32_in1k` | 224x224 | 11.69 | 1.81 | 0.00 | 1.81 |')
    assert usual.endswith('| 11.7 | 1.8 |')
    assert '| 64x96 | 11.69 |' in other and other.count('|') == usual.count('|') - 2


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, 'is neither a file nor the name of a config'),
        ('a = 1', 'default_scope of .* is None; it must be one of mmdet, mmseg, mmpretrain'),
        ("default_scope = 'mmpose'", "is 'mmpose'; it must be one of"),
    ],
)
def test_a_config_of_nobody_is_named(tmp_path, text, message):
    path = tmp_path / 'some.py'
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(path)


def test_an_unknown_name_of_a_library_is_named():
    with pytest.raises(ValueError, match='mmdet::nothing.py is no config of an installed library'):
        read_config('mmdet::nothing.py')


@pytest.mark.parametrize('size', [(0, 64), (64, -1)])
def test_a_size_that_is_not_positive_is_named(tmp_path, size):
    config = read_config(thin_config(tmp_path / 'thin_in1k.py'))
    with pytest.raises(ValueError, match=f'size must be two positive numbers, got {size[0]}'):
        count_config(config, size)


# `python tools/print_complexity.py --write PAGE ...` renews a page that fails here.
@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_of_the_pages_are_what_the_tool_prints(page):
    assert renew_tables(page) == page.read_text(encoding='utf-8')


def test_script_renews_what_is_marked_and_nothing_else(tmp_path):
    (tmp_path / 'models').mkdir()
    thin_config(tmp_path / 'models/a_in1k.py')
    thin_config(tmp_path / 'models/b_in1k.py')
    mark = '<!-- complexity: begin models/a_in1k.py\n  models/b_in1k.py -->\n'
    page = tmp_path / 'README.md'
    page.write_text(f'# é\n\n{mark}old\n<!-- complexity: end -->\n\nafter | this\n')
    result = run_tool('print_complexity', '--write', page)
    assert result.returncode == 0 and 'README.md: renewed' in result.stdout
    table = make_table([tmp_path / 'models/a_in1k.py', tmp_path / 'models/b_in1k.py'])
    assert page.read_text() == (f'# é\n\n{mark}{table}<!-- complexity: end -->\n\nafter | this\n')
    assert renew_tables(page) == page.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {'README.md', 'models'}


@pytest.mark.parametrize(
    'text',
    [
        'no mark',
        '<!-- complexity: begin a.py -->\n',
        '<!-- complexity: begin a.py -->\n<!-- complexity: begin b -->\n<!-- complexity: end -->',
        '<!-- complexity: end -->\n<!-- complexity: begin a.py -->\n<!-- complexity: end -->',
    ],
)
def test_marks_that_do_not_pair_up_are_refused(tmp_path, text):
    page = tmp_path / 'page.md'
    page.write_text(text)
    with pytest.raises(ValueError, match='page.md has .* it must have as many, in pairs'):
        renew_tables(page)


def test_script_prints_a_table_and_nothing_else(tmp_path):
    # With mixup the library says on the standard output that it makes labels one-hot.
    path = thin_config(tmp_path / 'thin_in1k.py')
    mixup = "\nmodel['train_cfg'] = dict(augments=dict(type='Mixup', alpha=0.8))\n"
    path.write_text(path.read_text() + mixup)
    result = run_tool('print_complexity', path, '--size', '64', '96')
    assert result.returncode == 0, result.stderr
    assert [line.startswith('| ') for line in result.stdout.splitlines()] == [True] * 3
    assert '| `thin_in1k` | 64x96 |' in result.stdout


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([], 'give configs (and --size, --convention), or --write and pages'),
        (['a.py', '--write', 'b.md'], 'or --write and pages'),
        (['--write', 'b.md', '--convention', 'mmdet2'], 'or --write and pages'),
        (['nowhere.py'], 'nowhere.py is neither a file'),
        (['--write', 'nowhere.md'], 'nowhere.md is no file; give a Markdown page'),
    ],
)
def test_script_names_what_is_wrong(args, message):
    result = run_tool('print_complexity', *args)
    assert result.returncode == 2 and message in result.stderr
