"""The demo data set: what it promises to the users of COCO's and Cityscapes' tools."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('skimage')
pytest.importorskip('sklearn')
pytest.importorskip('cityscapesscripts')

from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as cs_eval
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import id2label
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from contnet_mm.datasets.demo import DemoOptions, build, make_demo_data, sources
from contnet_mm.datasets.demo.cityscapes import DIGIT_LABELS, label_maps
from contnet_mm.datasets.demo.coco import describe_mask
from contnet_mm.datasets.demo.imagenet import crop_digit
from contnet_mm.datasets.demo.scenes import SceneMaker
from tests.helpers import run_tool

# pycocotools' arrays predate NumPy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')

OPTIONS = DemoOptions(
    num_train=12, num_val=8, size=(96, 128), digits=(2, 4), digit_height=(28, 48), seed=3
)
SMALL = {'num_train': 2, 'num_val': 1, 'size': (64, 80), 'digits': (1, 2), 'digit_height': (24, 32)}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('demo') / 'data'
    assert make_demo_data(out, OPTIONS)
    return out


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def read(path):
    return np.array(Image.open(path))


def label_files(data, part, kind):
    return sorted((data / 'cityscapes/gtFine' / part / 'demo').glob(f'*_gtFine_{kind}'))


@pytest.mark.parametrize('many', [build.MANY, 3], ids=['here', 'other processes'])
def test_equal_seeds_give_equal_bytes(data, tmp_path, monkeypatch, many):
    monkeypatch.setattr(build, 'MANY', many)
    make_demo_data(tmp_path / 'again', OPTIONS)
    assert digest(tmp_path / 'again') == digest(data)


def test_other_seed_gives_other_scenes(tmp_path):
    for seed in (0, 1):
        make_demo_data(tmp_path / str(seed), DemoOptions(**SMALL, seed=seed))
    # How many crops each digit's folder in imagenet/ holds depends on the scenes.
    first, second = (
        {k: v for k, v in digest(tmp_path / str(seed)).items() if 'imagenet' not in k}
        for seed in (0, 1)
    )
    assert first.keys() == second.keys()
    assert not any(first[name] == second[name] for name in first if name.endswith(('jpg', 'png')))


def test_scene_does_not_depend_on_the_others():
    maker = SceneMaker(OPTIONS)
    before = maker.make('val', 2).image
    maker.make('train', 0)
    assert np.array_equal(maker.make('val', 2).image, before)


def test_split_covers_every_sample_once_and_shares_none():
    _, labels = sources.load_samples()
    split = sources.split_samples(labels, seed=0)
    flat = {part: np.concatenate(split[part]) for part in sources.PARTS}
    assert sorted(np.concatenate(list(flat.values()))) == list(range(len(labels)))
    for part in sources.PARTS:
        for digit, indices in enumerate(split[part]):
            assert (labels[indices] == digit).all()
    shares = [len(val) / np.sum(labels == digit) for digit, val in enumerate(split['val'])]
    assert np.allclose(shares, sources.VAL_SHARE, atol=0.01)


def test_parts_show_no_common_sample_and_no_common_pixel():
    maker = SceneMaker(OPTIONS)
    samples = {part: set() for part in sources.PARTS}
    shown = {
        name: {part: np.zeros(sources.load_photograph(path).shape[:2], bool) for part in samples}
        for name, path in maker.photographs.items()
    }
    for part in sources.PARTS:
        for index in range(60):
            scene = maker.make(part, index)
            samples[part].update(digit.sample for digit in scene.digits)
            top, left, bottom, right = scene.crop
            shown[scene.photograph][part][top:bottom, left:right] = True
    assert samples['train'].isdisjoint(samples['val'])
    for pixels in shown.values():
        assert not (pixels['train'] & pixels['val']).any()
    assert sum(all(pixels[part].any() for part in samples) for pixels in shown.values()) > 5


def test_image_shows_only_its_crop(monkeypatch):
    maker = SceneMaker(OPTIONS)
    before = maker.make('val', 0)
    photograph = sources.load_photograph(maker.photographs[before.photograph]).copy()
    top, left, bottom, right = before.crop
    outside = np.ones(photograph.shape[:2], bool)
    outside[top:bottom, left:right] = False
    photograph[outside] = 255 - photograph[outside]
    monkeypatch.setattr('contnet_mm.datasets.demo.scenes.load_photograph', lambda path: photograph)
    assert np.array_equal(maker.make('val', 0).image, before.image)


@pytest.mark.parametrize('part', sources.PARTS)
def test_coco_masks_agree_with_boxes_and_areas(data, part):
    coco = COCO(data / f'coco/annotations/instances_{part}.json')
    assert [cat['name'] for cat in coco.loadCats(coco.getCatIds())] == [str(d) for d in range(10)]
    assert len(coco.getImgIds()) == OPTIONS.num_images(part)
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = read(data / 'coco' / part / image['file_name'])
        assert pixels.shape == (image['height'], image['width'], 3) == (*OPTIONS.size, 3)
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        assert OPTIONS.digits[0] <= len(annotations) <= OPTIONS.digits[1]
        masks = [coco.annToMask(annotation).astype(bool) for annotation in annotations]
        assert np.sum(masks, axis=0).max() == 1
        for annotation, mask in zip(annotations, masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            size = [np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation['bbox'] == [columns[0], rows[0], *size]
            assert annotation['area'] == mask.sum() >= 100


def test_categories_name_the_handwritten_digit(data):
    coco = COCO(data / 'coco/annotations/instances_train.json')
    names = {cat['id']: cat['name'] for cat in coco.loadCats(coco.getCatIds())}
    maker, (_, labels) = SceneMaker(OPTIONS), sources.load_samples()
    for index, image_id in enumerate(coco.getImgIds()):
        found = [names[ann['category_id']] for ann in coco.imgToAnns[image_id]]
        digits = maker.make('train', index).digits
        assert found == [str(labels[digit.sample]) for digit in digits]


def test_no_instance_shows_less_than_the_least_area_however_hidden(monkeypatch):
    monkeypatch.setattr('contnet_mm.datasets.demo.scenes.MIN_AREA', 400)
    monkeypatch.setattr('contnet_mm.datasets.demo.scenes.MAX_OVERLAP', 1.0)
    maker = SceneMaker(OPTIONS)
    for index in range(20):
        assert all(digit.visible.sum() >= 400 for digit in maker.make('train', index).digits)


def test_annotation_numbers_are_unique_and_never_zero(data):
    for path in data.rglob('annotations/*.json'):
        ids = [annotation['id'] for annotation in json.loads(path.read_text())['annotations']]
        assert len(set(ids)) == len(ids) and min(ids) == 1


def test_digits_stand_out_from_the_ground():
    maker = SceneMaker(OPTIONS)
    for index in range(10):
        scene = maker.make('train', index)
        grey = scene.image.mean(axis=2)
        for digit in scene.digits:
            others = np.any([other.shape for other in scene.digits], axis=0)
            rows, columns = np.nonzero(digit.visible)
            around = np.zeros_like(others)
            around[rows.min() : rows.max(), columns.min() : columns.max()] = True
            ground = grey[around & ~others]
            assert abs(np.median(grey[digit.visible]) - np.median(ground)) > 15


@pytest.mark.parametrize('part', sources.PARTS)
def test_cityscapes_label_images_agree(data, part):
    labels = label_files(data, part, 'labelIds.png')
    assert len(labels) == OPTIONS.num_images(part)
    for path in labels:
        label_ids = read(path)
        train_ids = read(str(path).replace('labelIds', 'labelTrainIds'))
        instance_ids = read(str(path).replace('labelIds', 'instanceIds')).astype(int)
        for label_id in np.unique(label_ids):
            label = id2label[label_id]
            where = label_ids == label_id
            assert not label.ignoreInEval
            assert (train_ids[where] == label.trainId).all()
            divisor = 1000 if label.hasInstances else 1
            assert (instance_ids[where] // divisor == label_id).all()
        numbers, areas = np.unique(instance_ids[instance_ids >= 1000], return_counts=True)
        assert (areas >= 100).all()
        for label_id in np.unique(numbers // 1000):
            ours = numbers[numbers // 1000 == label_id] % 1000
            assert ours.tolist() == list(range(len(ours)))


@pytest.mark.parametrize('part', sources.PARTS)
def test_painting_the_polygons_gives_the_instance_image(data, part):
    for path in label_files(data, part, 'polygons.json'):
        annotation = Annotation()
        annotation.fromJsonFile(str(path))
        painted = np.array(createInstanceImage(annotation, 'ids'))
        expected = read(str(path).replace('polygons.json', 'instanceIds.png'))
        # Pillow drops single pixels where a bridge to a hole ends.
        assert (painted != expected).sum() <= 6


@pytest.mark.parametrize('part', sources.PARTS)
def test_cityscapes_instances_file_describes_the_instance_images(data, part):
    root = data / 'cityscapes'
    coco = COCO(root / f'annotations/instancesonly_filtered_gtFine_{part}.json')
    names = {cat['id']: cat['name'] for cat in coco.loadCats(coco.getCatIds())}
    assert list(names) == [24, 25, 26, 27, 28, 31, 32, 33]
    assert list(names.values()) == list(DIGIT_LABELS[:8])
    for image in coco.loadImgs(coco.getImgIds()):
        assert (root / 'leftImg8bit' / part / image['file_name']).is_file()
        label_path = root / 'gtFine' / part / image['segm_file']
        instance_ids = read(str(label_path).replace('labelIds', 'instanceIds'))
        expected = {
            (int(number) // 1000, int((instance_ids == number).sum()))
            for number in np.unique(instance_ids[instance_ids >= 1000])
        }
        found = coco.loadAnns(coco.getAnnIds(image['id']))
        assert {(ann['category_id'], int(coco.annToMask(ann).sum())) for ann in found} == expected


def write_perfect_predictions(instance_path, folder):
    instance_ids = read(instance_path)
    lines = []
    for number in np.unique(instance_ids[instance_ids >= 1000]):
        name = f'{instance_path.stem}_{number}.png'
        Image.fromarray((instance_ids == number).astype(np.uint8)).save(folder / name)
        lines.append(f'{name} {number // 1000} 1.0\n')
    prediction = folder / f'{instance_path.stem}.txt'
    prediction.write_text(''.join(lines))
    return str(prediction)


@pytest.mark.filterwarnings('ignore')
def test_cityscapes_evaluator_gives_the_ground_truth_full_marks(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the evaluator leaves a file where it runs
    args = cs_eval.args
    monkeypatch.setattr(args, 'gtInstancesFile', str(tmp_path / 'gt.json'))
    monkeypatch.setattr(args, 'predictionPath', str(tmp_path))
    monkeypatch.setattr(args, 'JSONOutput', False)
    monkeypatch.setattr(args, 'quiet', True)
    truths = label_files(data, 'val', 'instanceIds.png')
    predictions = [write_perfect_predictions(path, tmp_path) for path in truths]
    result = cs_eval.evaluateImgLists(predictions, [str(path) for path in truths], args)
    per_class = [value['ap'] for value in result['averages']['classes'].values()]
    present = {number // 1000 for path in truths for number in np.unique(read(path))} - {0}
    assert np.isfinite(per_class).sum() == len(present) >= 5
    assert result['averages']['allAp'] == pytest.approx(1.0)


def test_both_layouts_show_the_same_masks():
    scene = SceneMaker(OPTIONS).make('train', 1)
    label_ids = label_maps(scene)['labelIds']
    for digit in scene.digits:
        mask = coco_mask.decode(describe_mask(digit.visible)['segmentation']).astype(bool)
        assert {id2label[number].name for number in np.unique(label_ids[mask])} == {
            DIGIT_LABELS[digit.label]
        }


@pytest.mark.parametrize('part', ['train', 'val'])
def test_imagenet_folders_hold_a_square_crop_of_every_digit(data, part):
    content = json.loads((data / 'coco/annotations' / f'instances_{part}.json').read_text())
    for category in content['categories']:
        crops = sorted((data / 'imagenet' / part / category['name']).iterdir())
        digits = [a for a in content['annotations'] if a['category_id'] == category['id']]
        assert len(crops) == len(digits)
        for crop, digit in zip(crops, digits, strict=True):
            height, width = read(crop).shape[:2]
            assert height == width >= min(max(digit['bbox'][2:]), 96)


def test_an_imagenet_crop_shows_its_digit_in_the_middle():
    scene = SceneMaker(OPTIONS).make('train', 0)
    for digit in scene.digits:
        # Paint the digit alone and see whether the crop holds all of it.
        painted = np.where(digit.shape, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=2)
        assert (crop_digit(painted, digit) > 0).sum() == (painted > 0).sum()


def test_same_settings_are_not_made_again(data):
    before = (data / build.SETTINGS_NAME).stat().st_mtime_ns
    assert not make_demo_data(data, OPTIONS)
    assert (data / build.SETTINGS_NAME).stat().st_mtime_ns == before


def test_other_settings_are_refused_until_overwrite(tmp_path):
    out = tmp_path / 'data'
    make_demo_data(out, DemoOptions(**SMALL))
    other = DemoOptions(**SMALL, seed=7)
    with pytest.raises(ValueError, match='seed is 0, asked for 7.*--overwrite'):
        make_demo_data(out, other)
    assert make_demo_data(out, other, overwrite=True)
    assert json.loads((out / build.SETTINGS_NAME).read_text())['seed'] == 7
    assert [path.name for path in tmp_path.iterdir()] == ['data']


def test_overwrite_makes_a_damaged_data_set_of_the_same_settings_again(tmp_path):
    out = tmp_path / 'data'
    make_demo_data(out, DemoOptions(**SMALL))
    image = min((out / 'coco' / 'train').iterdir())
    good = image.read_bytes()
    image.write_bytes(b'')
    assert make_demo_data(out, DemoOptions(**SMALL), overwrite=True)
    assert image.read_bytes() == good


def test_foreign_folder_is_never_replaced(tmp_path):
    (tmp_path / 'precious.txt').write_text('keep')
    with pytest.raises(ValueError, match='no demo data set'):
        make_demo_data(tmp_path, DemoOptions(**SMALL), overwrite=True)
    assert (tmp_path / 'precious.txt').read_text() == 'keep'


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_interruption_leaves_nothing(tmp_path, error):
    def interrupt():
        raise error

    with pytest.raises(error):
        make_demo_data(tmp_path / 'data', DemoOptions(**SMALL), on_image=interrupt)
    assert not list(tmp_path.iterdir())


def test_left_over_of_a_killed_run_is_removed(tmp_path):
    left_over = tmp_path / '.data.unfinished'
    left_over.mkdir()
    (left_over / 'half').write_text('')
    assert make_demo_data(tmp_path / 'data', DemoOptions(**SMALL))
    assert not left_over.exists() and not list((tmp_path / 'data').rglob('half'))


def test_too_few_photographs_are_named(tmp_path):
    (tmp_path / 'moon.png').write_bytes(b'')
    with pytest.raises(ValueError, match=r"carries only \['moon'\]"):
        sources.find_photographs(tmp_path)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_train': 0}, 'num_train must be at least 1, got 0'),
        ({'num_val': -1}, 'num_val must be at least 1, got -1'),
        ({'seed': -1}, 'seed must be at least 0, got -1'),
        ({'size': (63, 256)}, 'size must be at least 64, got 63'),
        ({'digits': (0, 3)}, 'digits must be at least 1, got 0'),
        ({'digits': (4, 3)}, r'digits must be given as \(smallest, largest\), got \(4, 3\)'),
        ({'digits': (2, 60)}, 'at most 17 digits'),
        ({'digit_height': (10, 40)}, 'digit_height must be at least 24, got 10'),
        ({'digit_height': (28, 180)}, 'the largest may be 86 pixels'),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        DemoOptions(**changes)


@pytest.mark.parametrize('changes', [{'seed': 1.5}, {'num_val': True}, {'size': 64}])
def test_bad_types_are_refused(changes):
    with pytest.raises(TypeError, match=next(iter(changes))):
        DemoOptions(**changes)


def test_most_crowded_options_still_find_room():
    options = DemoOptions(size=(64, 64), digits=(2, 2), digit_height=(28, 49))
    maker = SceneMaker(options)
    assert all(len(maker.make('train', index).digits) == 2 for index in range(20))


def test_script_helps():
    result = run_tool('make_demo_data', '--help')
    assert result.returncode == 0 and '--digit-height' in result.stdout


def test_script_makes_and_then_keeps(tmp_path):
    args = ['--out', tmp_path / 'data', '--num-train', '1', '--num-val', '1']
    assert 'made' in run_tool('make_demo_data', *args).stdout
    assert 'already there' in run_tool('make_demo_data', *args).stdout


def test_script_names_a_bad_value(tmp_path):
    result = run_tool('make_demo_data', '--out', tmp_path / 'data', '--seed', '-1')
    assert result.returncode == 2 and 'seed must be at least 0, got -1' in result.stderr
