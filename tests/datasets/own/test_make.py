"""From a folder of data to a config: what is written, what is refused, what is left behind."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from contnet_mm.apis.config import read_config
from contnet_mm.datasets.check import check_parts, parts_of_config
from contnet_mm.datasets.check.heads import find_heads
from contnet_mm.datasets.own import make
from contnet_mm.datasets.own.make import BadDataError, Request, make_config
from contnet_mm.datasets.own.plan import Options
from contnet_mm.swap.edit import SwapError
from tests.datasets.own.forms import CLASSES, SIZE, save, write
from tests.helpers import run_python, run_tool

BASES = dict(
    voc='retinanet_contnet-ti_fpn_1x_coco',
    yolo='faster-rcnn_contnet-ti_fpn_demo',
    coco='mask-rcnn_contnet-ti_fpn_demo',
    masks='pspnet_contnet-ti-d8_demo-cityscapes',
    folders='contnet-ti_8xb64-strong_in1k',
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Paths in configs are relative to where commands run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_trial(monkeypatch):
    """Leave the training step out where the test is about something else."""
    monkeypatch.setattr(make, 'try_config', lambda config, number: 'nothing')


def request(kind, folder, **options):
    options = {'base': BASES[kind], 'out': folder / 'my.py', **options}
    return Request(root=write(kind, folder / 'data') if kind in BASES else kind, **options)


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != 'data')


@pytest.mark.parametrize('kind', BASES)
def test_a_config_is_written_that_trained_a_step_and_reads_back(folder, kind):
    size = (64, 64) if kind == 'folders' else SIZE
    made = make_config(request(kind, folder), Options(size=size))
    assert 'one training step on real images (the first 64x' in made.what_ran
    assert 'one prediction and its evaluation' in made.what_ran
    config = Config.fromfile(folder / 'my.py')
    number = 4 if kind == 'masks' else 3
    heads = find_heads(config)
    assert set(heads.values()) == {number} and heads.keys() == find_heads(made.base).keys()
    assert config.metainfo.classes == made.data.classes and len(config.metainfo.palette) == number
    for role in ('train', 'val', 'test'):
        assert config[f'{role}_dataloader'].dataset.metainfo == config.metainfo
    parts = parts_of_config(config)
    assert [issue for issue in check_parts(parts) if not issue.is_note] == []
    assert [part.name for part in parts] == ['train', 'val, test']
    written = ['my.py', 'my_data'] if kind in ('voc', 'yolo') else ['my.py']
    assert left_behind(folder) == written
    text = (folder / 'my.py').read_text()
    assert len(text.splitlines()) < 120 and text.count('palette=') == 1


def test_every_place_of_the_number_of_classes_is_set(folder, no_trial):
    config = make_config(request('folders', folder), Options()).swap.config
    assert config.data_preprocessor.num_classes == config.model.head.num_classes == 3
    assert config.model.head.topk == (1,) and config.val_evaluator.topk == (1,)
    shutil.rmtree(folder / 'data')
    (folder / 'my.py').unlink()
    base = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'
    config = make_config(request('voc', folder, base=base), Options()).swap.config
    assert [head.num_classes for head in config.model.roi_head.bbox_head] == [3, 3, 3]
    assert 'num_classes' not in config.model.rpn_head


def test_weights_of_classes_follow_their_number(folder, no_trial):
    equal = [1.0] * 80 + [0.1]
    for given, expected in ((equal, [1.0] * 3 + [0.1]), ([1.0] * 80, [1.0] * 3), ([1, 2, 3], None)):
        base = folder / 'base.py'
        base.write_text(
            f"_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n"
            f'model = dict(bbox_head=dict(loss_cls=dict(class_weight={given})))\n'
        )
        made = make_config(request('voc', folder, base=str(base)), Options())
        assert made.swap.config.model.bbox_head.loss_cls.class_weight == expected
        for path in (folder / 'data', folder / 'my_data'):
            shutil.rmtree(path)
        (folder / 'my.py').unlink()


def test_a_head_that_keeps_its_own_number_by_a_default_is_refused(folder):
    base = folder / 'base.py'
    content = read_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    del content.model.roi_head.bbox_head['num_classes']
    content.dump(base)
    with pytest.raises(SwapError, match='roi_head.bbox_head .* has num_classes=80, the data 3'):
        make_config(request('voc', folder, base=str(base)), Options(size=SIZE))
    assert left_behind(folder) == ['base.py']


def test_batch_rate_and_length_follow_the_number_of_images(folder, no_trial):
    made = make_config(request('voc', folder), Options(batch_size=4, epochs=24))
    config, base = made.swap.config, made.base
    assert config.train_dataloader.batch_size == config.auto_scale_lr.base_batch_size == 4
    assert config.optim_wrapper.optimizer.lr == base.optim_wrapper.optimizer.lr * 4 / 16
    assert config.train_cfg.max_epochs == 24
    warm_up, steps = config.param_scheduler
    assert warm_up.end == 2 and (steps.end, steps.milestones) == (24, [16, 22])
    (folder / 'my.py').unlink()
    shutil.rmtree(folder / 'my_data')
    shutil.rmtree(folder / 'data')
    config = make_config(request('voc', folder), Options()).swap.config
    assert config.train_dataloader.batch_size == 2 and config.train_cfg.max_epochs == 300


def test_a_training_in_iterations_is_stretched_as_well(folder, no_trial):
    made = make_config(request('masks', folder), Options(batch_size=2, epochs=10))
    config = made.swap.config
    warm_up, rest = config.param_scheduler
    assert config.train_cfg.max_iters == rest.end == 20 and warm_up.end == rest.begin == 3
    assert config.train_cfg.val_interval == config.default_hooks.checkpoint.interval == 1
    assert config.default_hooks.logger.interval == 1


@pytest.mark.parametrize(
    ('kind', 'metric'), [('voc', 'coco/bbox_mAP'), ('coco', 'coco/segm_mAP'), ('masks', 'mIoU')]
)
def test_the_best_checkpoint_is_kept_and_training_stops_early(folder, no_trial, kind, metric):
    config = make_config(request(kind, folder), Options()).swap.config
    (stopping,) = config.custom_hooks
    assert stopping.type == 'EarlyStoppingHook' and stopping.monitor == metric
    checkpoint = config.default_hooks.checkpoint
    assert checkpoint.save_best == metric and checkpoint.interval == config.train_cfg.val_interval
    assert stopping.min_delta == (0.1 if kind == 'masks' else 0.001)


def test_weights_go_to_the_backbone_and_those_of_a_detector_to_all(folder, no_trial):
    import torch

    from contnet_mm import ConTNet

    net = ConTNet('tiny').state_dict()
    torch.save(net, 'net.pth')
    torch.save({f'backbone.{k}': v for k, v in net.items()} | {'neck.x': torch.ones(1)}, 'det.pth')
    base = read_config(BASES['voc'] + '.py').model.backbone
    for name, whole in (('net.pth', None), ('det.pth', 'det.pth')):
        made = make_config(request('voc', folder), Options(weights=folder / name))
        backbone = made.swap.config.model.backbone
        assert backbone.init_cfg.checkpoint == str(folder / name)
        assert backbone.norm_eval == base.norm_eval
        assert made.swap.config.get('load_from') == (str(folder / whole) if whole else None)
        (folder / 'my.py').unlink()
        for path in (folder / 'data', folder / 'my_data'):
            shutil.rmtree(path)
    config = make_config(request('voc', folder), Options()).swap.config
    assert config.model.backbone.init_cfg is None and not config.model.backbone.norm_eval
    with pytest.raises(ValueError, match='my.py exists'):
        make_config(request('voc', folder), Options())


# Name: form, damage, the check that speaks, what it says, whether --repair puts it right.
def drop_area(root):
    path = root / 'labels/train/1.txt'
    path.write_text(f'{path.read_text()}\n0 0.5 0.5 0 0')


def stick_out(root):
    path = root / 'labels/train/1.txt'
    path.write_text(f'{path.read_text()}\n0 0.9 0.5 0.4 0.4')


def cut_image(root):
    path = root / 'JPEGImages/1.jpg'
    path.write_bytes(path.read_bytes()[:300])


def spoil_label(root):
    with Image.open(root / 'masks/train/1.png') as image:
        wrong = image.point(lambda value: value + 7)
    wrong.save(root / 'masks/train/1.png')


def copy_to(target):
    def copy(root):
        source = root / f'JPEGImages/{1 if target == "2" else 5}.jpg'
        shutil.copy(source, root / f'JPEGImages/{target}.jpg')

    return copy


def cut_class_image(root):
    path = root / 'train/cat/1.png'
    path.write_bytes(path.read_bytes()[:300])


def drop_fields(root):
    path = root / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    del content['annotations'][0]['bbox'], content['annotations'][1]['area']
    path.write_text(json.dumps(content))


def empty_list(root):
    (root / 'ImageSets/Main/val.txt').write_text('')


def rename_category(root):
    path = root / 'annotations/instances_val.json'
    content = json.loads(path.read_text())
    content['categories'][0]['name'] = 'lion'
    path.write_text(json.dumps(content))


DAMAGE = {
    'box without area': ('yolo', drop_area, 'empty-box', '1.jpg', True),
    'box outside': ('yolo', stick_out, 'outside-box', '1.jpg', True),
    'cut image': ('voc', cut_image, 'unreadable', '1.jpg', True),
    'missing image': (
        'voc',
        lambda r: (r / 'JPEGImages/1.jpg').unlink(),
        'missing-image',
        '1',
        True,
    ),
    'broken XML': (
        'voc',
        lambda r: (r / 'Annotations/1.xml').write_text('<'),
        'unreadable',
        '1.xml',
        True,
    ),
    'label values': ('masks', spoil_label, 'label-values', '1.png', True),
    'cut image of a class': ('folders', cut_class_image, 'unreadable', '1.png', True),
    'annotation without box': ('coco', drop_fields, 'fields', 'bbox None', True),
    'leak': ('voc', copy_to('1'), 'leak', '1.jpg', True),
    'empty part': ('voc', empty_list, 'empty', 'val: val', False),
    'classes of one file alone': ('coco', rename_category, 'classes', 'lion', False),
}


@pytest.mark.parametrize('name', DAMAGE)
def test_bad_data_is_listed_with_its_fix_and_nothing_is_written(folder, no_trial, name):
    kind, damage, check, said, is_repaired = DAMAGE[name]
    asked = request(kind, folder, command='own_data X')
    damage(asked.root)
    before = {path: path.read_bytes() for path in asked.root.rglob('*') if path.is_file()}
    with pytest.raises(BadDataError) as stop:
        make_config(asked, Options())
    found = [issue for issue in stop.value.issues if not issue.is_note]
    assert any(i.check == check and said in example for i in found for example in i.examples)
    assert left_behind(folder) == []
    if is_repaired:
        assert any('--repair' in issue.fix for issue in found)
        made = make_config(replace(asked, repair=True), Options())
        assert any(said in example for note in made.notes for example in note.examples)
        assert left_behind(folder) == ['my.py', 'my_data']
    else:
        with pytest.raises(BadDataError):
            make_config(replace(asked, repair=True), Options())
    assert before == {path: path.read_bytes() for path in asked.root.rglob('*') if path.is_file()}


def test_a_failure_after_the_conversion_leaves_nothing(folder, monkeypatch):
    def fail(config, number):
        raise KeyboardInterrupt

    monkeypatch.setattr(make, 'try_config', fail)
    with pytest.raises(KeyboardInterrupt):
        make_config(request('voc', folder), Options())
    assert left_behind(folder) == []


@pytest.mark.parametrize(
    ('kind', 'options', 'said'),
    [
        ('voc', dict(base=BASES['coco']), 'boxes alone: take a detector'),
        ('voc', dict(base='mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'), 'panoptic'),
        ('voc', dict(base=BASES['folders']), 'goes with a base of mmdet'),
        ('voc', dict(base='retinanet_contnet-xs_fpn_1x_coco'), 'did you mean retinanet_contnet'),
        ('voc', dict(classes=('cat', 'lion')), 'the data has cat, dog, owl'),
        ('voc', dict(val='cats'), 'no part of that name, there are train'),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(folder, no_trial, kind, options, said):
    with pytest.raises(ValueError, match=said):
        make_config(request(kind, folder, **options), Options())
    assert left_behind(folder) == []


def test_some_of_the_classes_can_be_trained_alone(folder):
    made = make_config(request('voc', folder, classes=('owl', 'cat')), Options(size=SIZE))
    config = made.swap.config
    assert config.model.bbox_head.num_classes == 2 and config.metainfo.classes == ('owl', 'cat')
    assert 'one training step' in made.what_ran
    assert any(note.check == 'classes' and note.examples == ('dog',) for note in made.notes)


def test_images_without_parts_are_divided_by_a_share(folder, no_trial):
    asked = request('folders', folder)
    for path in (asked.root / 'val', asked.root / 'train'):
        for image in path.rglob('*.png'):
            save(Image.open(image), asked.root / image.parent.name / image.name)
        shutil.rmtree(path)
    with pytest.raises(ValueError, match='--val 0.2'):
        make_config(asked, Options())
    made = make_config(replace(asked, val='0.5'), Options())
    lists = [
        set((folder / f'my_data/{role}.txt').read_text().split('\n')) for role in ('train', 'val')
    ]
    assert len(made.chosen['val'].samples) == 9 and lists[0] & lists[1] == {''}
    assert 'cat/1.png 0' in lists[0] | lists[1]


def test_black_and_white_masks_are_converted_for_each_part(folder, no_trial):
    asked = request('masks', folder, classes=('ground', 'thing'))
    for path in asked.root.glob('masks/*/*.png'):
        with Image.open(path) as image:
            thing = image.point(lambda value: 255 * (value > 0))
        thing.save(path)
    # Of one name in two parts, with other labels.
    for kind in ('images', 'masks'):
        (asked.root / kind / 'val/5.png').rename(asked.root / kind / 'val/1.png')
    make_config(asked, Options())
    for part in ('train', 'val'):
        made = np.array(Image.open(folder / f'my_data/labels/{part}/1.png'))
        given = np.array(Image.open(asked.root / f'masks/{part}/1.png'))
        assert np.array_equal(made, given // 255) and {*made.flat} == {0, 1}


def run(*arguments):
    result = run_tool('own_data', *arguments)
    return result.returncode, result.stdout + result.stderr


def test_the_script_prints_what_it_did_or_what_to_fix(folder, no_trial):
    write('yolo', folder / 'data')
    drop_area(folder / 'data')
    command = ('data', '--base', BASES['voc'], '--size', '64x96')
    status, output = run(*command)
    assert status == 1 and output.endswith('1 issue to fix; nothing was written\n')
    assert '[train] empty-box (1)' in output
    assert f'own_data {" ".join(command)} --repair' in output
    status, output = run(*command, '--repair', '-o', 'my.py')
    assert status == 0 and 'data: YOLO text; images: train 4 (train), val 2 (val)' in output
    assert f'3 classes: {", ".join(CLASSES)}' in output
    assert '| model.bbox_head.num_classes | 80 | 3 | The data has 3 classes. |' in output
    assert output.endswith('written: my.py\nnext: mim train mmdet my.py\n')


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['nowhere', '--base', BASES['voc']], 'nowhere is no folder'),
        (['nowhere'], '--base'),
        (['.', '--base', BASES['voc'], '--size', '7x9'], "'7x9' must be HxW"),
        (['.', '--base', BASES['voc'], '--epochs', '0'], 'whole number above 0'),
        (['.', '--base', BASES['voc'], '-o', 'a.txt'], 'must end in .py'),
    ],
)
def test_the_script_refuses_wrong_use_with_status_2(monkeypatch, capsys, arguments, said):
    status, output = run(*arguments)
    assert status == 2 and said in output and 'Traceback' not in output


@pytest.mark.slow
def test_a_written_config_trains_to_a_best_checkpoint(folder):
    make_config(request('yolo', folder), Options(size=SIZE, batch_size=2, epochs=2))
    result = run_python('-m', 'contnet_mm', 'train', 'my.py', cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    names = {path.name.split('_epoch')[0] for path in (folder / 'work_dirs/my').glob('*.pth')}
    assert names == {'best_coco_bbox_mAP', 'epoch_2.pth'}
    assert 'owl' in result.stdout  # AP of each class
