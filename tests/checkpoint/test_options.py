"""Options travel with weights: a difference is an error on every way to load them."""

import copy
import json
import pickle
from collections import OrderedDict

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import get_state_dict, weights_to_cpu
from PIL import Image
from torch import nn

from contnet_mm import ConTLayer, ConTNet
from contnet_mm.apis.publish import publish_checkpoint
from contnet_mm.checkpoint.load import load_pretrained
from contnet_mm.checkpoint.options import RECORD, find_record, make_record
from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.checkpoint.write import encode_checkpoint
from tests.conftest import THIN_ARCH
from tests.helpers import ROOT, run_python
from tests.tiny_runner import train_briefly

# An option, and what else it can be.
OTHERS = dict(position='relative', pre_norm=True, qkv_bias=False, avg_down=True, deep_stem=True)
BOTH_SIDES = 'avg_down=True in the weights, False here'


class Model(nn.Module):
    """A backbone inside of something."""

    def __init__(self, **options):
        super().__init__()
        self.backbone = ConTNet(dict(THIN_ARCH), **options)


def wrapped(model):
    """Return the model inside of one more module, as DistributedDataParallel wraps it."""
    outer = nn.Module()
    outer.module = model
    return outer


@pytest.fixture
def log(log):
    """What is logged, line by line, about options."""
    words = ('do not tell', 'another geometry')
    return lambda: [line for line in log().splitlines() if any(word in line for word in words)]


@pytest.mark.parametrize('name', OTHERS)
def test_a_difference_in_any_option_is_an_error_that_names_both_sides(name):
    net = ConTNet(dict(THIN_ARCH))
    before = copy.deepcopy(net.state_dict())
    state_dict = ConTNet(dict(THIN_ARCH), **{name: OTHERS[name]}).state_dict()
    here = net._options[name]
    with pytest.raises(ValueError, match=f'{name}={OTHERS[name]!r} in the weights, {here!r} here'):
        net.load_state_dict(state_dict, strict=False)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_record_adds_no_key_and_equal_options_load_without_a_word(log):
    source, target = Model(avg_down=True), Model(avg_down=True)
    expected = {name for name, _ in [*source.named_parameters(), *source.named_buffers()]}
    assert set(source.state_dict()) == expected
    target.load_state_dict(source.state_dict(), strict=True)
    assert not log()


def save(path, content):
    torch.save(content, path)
    return str(path)


WAYS = {
    'load_state_dict': lambda path, model: model.load_state_dict(torch.load(path)),
    'load_checkpoint': lambda path, model: load_checkpoint(model, path),
    'init_cfg': lambda path, model: load_pretrained(model.backbone, path),
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('saved_by', ['torch', 'mmengine', 'cpu', 'wrapper'])
def test_every_way_to_save_and_to_load_compares(tmp_path, way, saved_by):
    model = Model(avg_down=True)
    content = {
        'torch': model.state_dict,
        'mmengine': lambda: get_state_dict(model),
        'cpu': lambda: weights_to_cpu(model.state_dict()),
        'wrapper': wrapped(model).state_dict,
    }[saved_by]()
    path = save(tmp_path / 'a.pth', content)
    keeps_names = (way, saved_by) == ('load_state_dict', 'wrapper')
    target = wrapped(Model()) if keeps_names else Model()
    with pytest.raises(ValueError, match=BOTH_SIDES):
        WAYS[way](path, target)


@pytest.mark.parametrize(
    'old, revise_keys',
    [
        ('student.backbone.', [(r'^student\.', '')]),
        ('', [(r'^', 'backbone.')]),
        ('encoder.', [(r'^encoder\.', 'backbone.')]),
    ],
)
def test_the_only_record_counts_where_keys_were_renamed(tmp_path, old, revise_keys):
    state_dict = ConTNet(dict(THIN_ARCH), avg_down=True).state_dict()
    renamed = OrderedDict((old + key, value) for key, value in state_dict.items())
    renamed._metadata = {old.rstrip('.'): state_dict._metadata['']}
    path = save(tmp_path / 'a.pth', {'state_dict': renamed})
    with pytest.raises(ValueError, match=BOTH_SIDES):
        load_checkpoint(Model(), path, revise_keys=revise_keys)


def test_of_several_records_only_that_under_the_prefix_counts():
    one, two = make_record({'avg_down': True}), make_record({'avg_down': False})
    metadata = {'module.one': {RECORD: one}, 'two': {RECORD: two}}
    assert find_record(metadata, 'one.') == one and find_record(metadata, 'two.') == two
    assert find_record(metadata, 'three.') is None
    assert find_record({'two': {RECORD: two}}, 'three.') == two


@pytest.mark.parametrize('metadata', [None, [], {'': None}, {'': {RECORD: 5}}, {5: {RECORD: {}}}])
def test_damaged_metadata_tells_nothing(metadata):
    found = find_record(metadata, '')
    assert found is None or not any(found.values())


def test_weights_without_a_record_load_with_one_line_in_the_log(log):
    state_dict = dict(Model(avg_down=True).state_dict())
    Model().load_state_dict(state_dict)
    (line,) = log()
    for name in OTHERS:
        assert f'{name}={Model().backbone._options[name]!r}' in line


def test_a_partly_known_record_is_compared_and_the_rest_logged(log):
    state_dict = ConTNet(dict(THIN_ARCH)).state_dict()
    state_dict._metadata = {'': {RECORD: make_record({'pre_norm': False})}}
    ConTNet(dict(THIN_ARCH)).load_state_dict(state_dict)
    (line,) = log()
    assert 'avg_down=False' in line and 'pre_norm' not in line


def test_another_geometry_loads_with_one_line_in_the_log(log):
    dilated = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    ConTNet(dict(THIN_ARCH), **dilated).load_state_dict(ConTNet(dict(THIN_ARCH)).state_dict())
    (line,) = log()
    assert 'strides [1, 2, 2, 2] in the weights, [1, 2, 1, 1] here' in line
    assert 'dilations [1, 1, 1, 1] in the weights, [1, 1, 2, 4] here' in line


def test_init_cfg_names_the_file_and_changes_nothing(tmp_path):
    path = save(tmp_path / 'a.pth', Model(pre_norm=True).state_dict())
    net = ConTNet(dict(THIN_ARCH), init_cfg=dict(type='Pretrained', checkpoint=path))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r'a\.pth: .*pre_norm=True in the weights, False here'):
        net.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_shared_head_compares_with_the_whole_and_with_its_own(tmp_path):
    whole = save(tmp_path / 'whole.pth', Model(pre_norm=True, avg_down=True).state_dict())
    with pytest.raises(ValueError, match='pre_norm=True in the weights, False here'):
        load_pretrained(ConTLayer(dict(THIN_ARCH)), whole)
    head = ConTLayer(dict(THIN_ARCH), pre_norm=True)
    load_pretrained(head, whole)  # no shortcut of it is shrunk, whatever avg_down was
    with pytest.raises(ValueError, match='pre_norm=True in the weights, False here'):
        ConTLayer(dict(THIN_ARCH)).load_state_dict(head.state_dict())


def test_an_inferred_option_says_how_to_overrule_it():
    state_dict = ConTNet(dict(THIN_ARCH)).state_dict()
    record = make_record({'avg_down': True, 'pre_norm': False}, inferred={'avg_down': 'by 0.9'})
    state_dict._metadata = {'': {RECORD: record}}
    with pytest.raises(ValueError, match=r'inferred by probe_weights \(by 0\.9\).*--no-avg-down'):
        ConTNet(dict(THIN_ARCH)).load_state_dict(state_dict)


@pytest.mark.parametrize(
    'make_copy',
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=['deep', 'pickle'],
)
def test_copies_of_a_network_keep_its_options(make_copy):
    net = make_copy(ConTNet(dict(THIN_ARCH), avg_down=True))
    with pytest.raises(ValueError, match=BOTH_SIDES):
        ConTNet(dict(THIN_ARCH)).load_state_dict(net.state_dict())


def test_averaged_weights_keep_the_options_of_the_network():
    averaged = ExponentialMovingAverage(Model(avg_down=True))
    state_dict = averaged.state_dict()
    ExponentialMovingAverage(Model(avg_down=True)).load_state_dict(state_dict)
    with pytest.raises(ValueError, match=BOTH_SIDES):
        ExponentialMovingAverage(Model()).load_state_dict(state_dict)
    hook = EMAHook()
    hook.ema_model = averaged
    checkpoint = {'state_dict': Model(avg_down=True).state_dict()}
    hook.before_save_checkpoint(None, checkpoint)
    with pytest.raises(ValueError, match=BOTH_SIDES):
        Model().load_state_dict(checkpoint['state_dict'])


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_published_files_keep_the_options(tmp_path, suffix):
    if suffix == '.safetensors':
        pytest.importorskip('safetensors')
    source = save(tmp_path / 'a.pth', {'state_dict': Model(avg_down=True).state_dict()})
    path, _ = publish_checkpoint(source, tmp_path / 'name', suffix)
    load_pretrained(ConTNet(dict(THIN_ARCH), avg_down=True), str(path))
    with pytest.raises(ValueError, match=BOTH_SIDES):
        load_pretrained(ConTNet(dict(THIN_ARCH)), str(path))
    if suffix == '.pth':
        with pytest.raises(ValueError, match=BOTH_SIDES):
            load_checkpoint(Model(), str(path))


def test_safetensors_keep_what_torch_knows_of_modules(tmp_path):
    pytest.importorskip('safetensors')
    state_dict = Model().state_dict()
    (tmp_path / 'a.safetensors').write_bytes(encode_checkpoint(state_dict, None, '.safetensors'))
    content = read_checkpoint(tmp_path / 'a.safetensors')
    assert content['meta'] == {}
    assert dict(content['state_dict']._metadata) == json.loads(json.dumps(state_dict._metadata))


@pytest.mark.parametrize('averaged', [False, True])
def test_the_runner_neither_resumes_nor_starts_from_weights_of_other_options(tmp_path, averaged):
    hooks = [dict(type='EMAHook')] if averaged else []
    arch, options = dict(THIN_ARCH), dict(avg_down=True)
    checkpoint = train_briefly(tmp_path / 'first', arch, options, custom_hooks=hooks)
    for resume in (False, True):
        cfg = dict(load_from=str(checkpoint), resume=resume, custom_hooks=hooks)
        train_briefly(tmp_path / f'same{resume}', arch, options, **cfg)
        with pytest.raises(ValueError, match=BOTH_SIDES):
            train_briefly(tmp_path / f'other{resume}', arch, **cfg)


@pytest.mark.slow
def test_the_commands_train_with_an_option_and_refuse_to_test_without(tmp_path):
    pytest.importorskip('mmpretrain')
    for number in range(4):
        path = tmp_path / 'data' / str(number % 2) / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (56, 56, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    config = Config.fromfile(ROOT / 'configs' / 'demo' / 'contnet-ti_demo-imagenet.py')
    config.model.backbone.arch, config.model.head.in_channels = dict(THIN_ARCH), 128
    config.train_cfg.max_epochs = 1
    config.default_hooks.checkpoint.save_best = None
    for part in ('train', 'val', 'test'):
        loader = config[f'{part}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(tmp_path / 'data'), data_prefix='')
    config.dump(tmp_path / 'config.py')
    with_option = ('--cfg-options', 'model.backbone.avg_down=True')
    here = ('--work-dir', tmp_path / 'work')
    config = tmp_path / 'config.py'
    trained = run_python(ROOT / 'tools/train.py', config, *here, *with_option)
    assert trained.returncode == 0, trained.stderr
    checkpoint = tmp_path / 'work' / 'epoch_1.pth'
    tested = run_python(ROOT / 'tools/test.py', config, checkpoint, *here)
    assert tested.returncode != 0 and 'accuracy' not in tested.stdout
    assert BOTH_SIDES in tested.stderr
    tested = run_python(ROOT / 'tools/test.py', config, checkpoint, *here, *with_option)
    assert tested.returncode == 0 and 'accuracy/top1' in tested.stdout, tested.stderr
