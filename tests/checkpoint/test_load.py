"""Weights load whole or not at all, from every kind of file, without running code."""

import pickle
import re
import tarfile
import zipfile

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import PretrainedInit
from torch import nn

from contnet_mm import ConTNet
from contnet_mm.checkpoint.official_keys import convert_official
from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.checkpoint.sources import fetch_command
from tests.helpers import RunsCode
from tests.official import PARITY, backbone_options, official_state_dict, read_meta

META = {read_meta(path)['arch']: read_meta(path) for path in PARITY}


def pretrained(file, **kwargs):
    return ConTNet(init_cfg=dict(type='Pretrained', checkpoint=str(file)), **kwargs)


def with_prefix(state_dict, prefix):
    return {prefix + key: value for key, value in state_dict.items()}


@pytest.fixture(scope='module')
def official():
    return official_state_dict(META['Ti'])


@pytest.fixture
def thin(thin_arch):
    """A thin backbone with weights of its own, and its state dict."""
    net = ConTNet(thin_arch)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            nn.init.normal_(tensor)
    return net.state_dict()


@pytest.mark.parametrize(
    'nesting',
    [
        lambda s: s,
        lambda s: {'model': s, 'optimizer': {'state': {}}, 'epoch': 7},
        lambda s: {'state_dict': s},
        lambda s: {'state_dict': {'model': s}},
        lambda s: with_prefix(s, 'module.'),
        lambda s: with_prefix(s, 'module.module.'),
        lambda s: {'state_dict': s, 'model': {'layer0.conv.conv.weight': torch.zeros(1)}},
        lambda s: {'model': with_prefix(s, 'module.')},
        lambda s: with_prefix(s, 'backbone.'),
    ],
    ids=[
        'plain',
        'model',
        'state_dict',
        'both',
        'module',
        'module-module',
        'state_dict-before-model',
        'model-module',
        'backbone',
    ],
)
def test_official_files_load_in_every_nesting(tmp_path, official, nesting):
    torch.save(nesting(official), tmp_path / 'official.pth')
    net = pretrained(tmp_path / 'official.pth', arch='Ti')
    net.init_weights()
    for key, value in convert_official(official).items():
        assert torch.equal(net.state_dict()[key], value), key


@pytest.mark.parametrize('arch', list(META))
def test_official_keys_cover_the_backbone_exactly(arch):
    net = ConTNet(**backbone_options(META[arch]))
    state_dict = {key: torch.zeros(shape) for key, shape in META[arch]['state_dict']}
    converted = convert_official(state_dict)
    assert {k: v.shape for k, v in converted.items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }


def test_deep_stem_keys_are_converted():
    state_dict = {f'layer0.conv_bn{i}.conv.weight': torch.zeros(i) for i in (1, 2, 3)}
    state_dict['layer0.conv_bn2.bn.running_var'] = torch.ones(2)
    assert list(convert_official(state_dict)) == [
        'stem.conv1.weight',
        'stem.conv2.weight',
        'stem.conv3.weight',
        'stem.norm2.running_var',
    ]


def test_an_unknown_official_key_is_an_error():
    with pytest.raises(ValueError, match=r'layer1\.ConTBlock0\.gate'):
        convert_official({'layer1.ConTBlock0.gate': torch.zeros(1)})


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.', 'backbone._orig_mod.'])
def test_our_own_classifier_and_detector_checkpoints_load(tmp_path, thin_arch, thin, prefix, log):
    state_dict = with_prefix(thin, prefix)
    if prefix:
        state_dict.update({'neck.conv.weight': torch.zeros(1), 'head.fc.weight': torch.zeros(1)})
    torch.save({'state_dict': state_dict, 'meta': {'epoch': 1}}, tmp_path / 'ours.pth')
    net = pretrained(tmp_path / 'ours.pth', arch=thin_arch)
    net.init_weights()
    assert all(torch.equal(net.state_dict()[key], value) for key, value in thin.items())
    assert f'loaded {len(thin)} of {len(thin)} tensors' in log()


@pytest.mark.parametrize(
    'prefix', ['teacher.backbone.', 'teacher.backbone', 'module.teacher.backbone.']
)
def test_an_explicit_prefix_says_where_the_backbone_is(tmp_path, thin_arch, thin, prefix):
    teacher = {key: value + 1 for key, value in thin.items()}
    state_dict = {**with_prefix(thin, 'backbone.'), **with_prefix(teacher, 'teacher.backbone.')}
    torch.save(state_dict, tmp_path / 'both.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'both.pth'), prefix=prefix)
    net = ConTNet(thin_arch, init_cfg=cfg)
    net.init_weights()
    assert torch.equal(net.stem.conv.weight, teacher['stem.conv.weight'])


def test_the_file_format_of_old_torch_loads(tmp_path, thin_arch, thin):
    torch.save(thin, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    net = pretrained(tmp_path / 'old.pth', arch=thin_arch)
    net.init_weights()
    assert all(torch.equal(net.state_dict()[key], value) for key, value in thin.items())


def test_a_bias_table_that_belongs_to_no_window_is_refused(tmp_path, thin_arch):
    state_dict = ConTNet(thin_arch, position='relative').state_dict()
    key = next(key for key in state_dict if key.endswith('position.table'))
    state_dict[key] = torch.zeros(10, state_dict[key].shape[1])
    torch.save(state_dict, tmp_path / 'odd.pth')
    with pytest.raises(ValueError, match='1 of another kind.*position.table'):
        pretrained(tmp_path / 'odd.pth', arch=thin_arch, position='relative').init_weights()


@pytest.mark.parametrize('kind', ['Pretrained', 'mmengine.Pretrained', PretrainedInit])
def test_every_spelling_of_pretrained_loads_loudly(tmp_path, thin_arch, thin, kind):
    del thin['stem.conv.weight']
    torch.save(thin, tmp_path / 'cut.pth')
    cfg = dict(type=kind, checkpoint=str(tmp_path / 'cut.pth'))
    with pytest.raises(ValueError, match=r'1 missing.*stem\.conv\.weight'):
        ConTNet(thin_arch, init_cfg=cfg).init_weights()


def test_pretrained_weights_come_after_other_initialisations(tmp_path, thin_arch, thin):
    torch.save(thin, tmp_path / 'ours.pth')
    cfgs = [
        dict(type='Pretrained', checkpoint=str(tmp_path / 'ours.pth')),
        dict(type='Constant', layer='Conv2d', val=0.5),
    ]
    net = ConTNet(thin_arch, init_cfg=cfgs)
    net.init_weights()
    assert torch.equal(net.stem.conv.weight, thin['stem.conv.weight'])
    nn.init.zeros_(net.stem.conv.weight)
    net.init_weights()  # a second call, as detectors make it, changes nothing
    assert not net.stem.conv.weight.any()


def test_numbers_of_another_kind_are_refused(tmp_path, thin_arch, thin):
    for dtype in (torch.int32, torch.complex64):
        state_dict = {**thin, 'stem.conv.weight': thin['stem.conv.weight'].to(dtype)}
        torch.save(state_dict, tmp_path / 'other.pth')
        with pytest.raises(ValueError, match='1 of another kind.*stem'):
            pretrained(tmp_path / 'other.pth', arch=thin_arch).init_weights()


def test_the_same_tensor_under_two_official_names_is_refused(official):
    key = 'layer1.ConTBlock0.downsample.conv.weight'
    twice = {**official, key.replace('conv.weight', 'conv.conv.weight'): official[key]}
    with pytest.raises(ValueError, match='twice'):
        convert_official(twice)


@pytest.mark.parametrize(
    'init_cfg, error, words',
    [
        ('weights.pth', TypeError, 'weights.pth'),
        (dict(type='Pretrained'), ValueError, 'checkpoint'),
        (dict(type='Pretrained', checkpoint=None), ValueError, 'checkpoint'),
    ],
    ids=str,
)
def test_a_bad_init_cfg_is_refused_at_once(thin_arch, init_cfg, error, words):
    with pytest.raises(error, match=words):
        ConTNet(thin_arch, init_cfg=init_cfg)


def test_an_unknown_address_is_refused(thin_arch):
    with pytest.raises(ValueError, match='nowhere://file cannot be fetched'):
        pretrained('nowhere://file', arch=thin_arch).init_weights()


def test_a_shallower_backbone_takes_the_file_of_the_whole(tmp_path, official):
    torch.save(official, tmp_path / 'official.pth')
    for out_indices, location in [((0,), 'block'), ((0, 2), 'encoder')]:
        options = dict(arch='Ti', out_indices=out_indices, feature_location=location)
        net = pretrained(tmp_path / 'official.pth', **options)
        net.init_weights()
        assert torch.equal(net.stem.conv.weight, official['layer0.conv.conv.weight'])


def test_the_whole_backbone_does_not_take_the_file_of_a_shallower_one(tmp_path, thin_arch):
    torch.save(ConTNet(thin_arch, out_indices=(0, 1)).state_dict(), tmp_path / 'cut.pth')
    with pytest.raises(ValueError, match=r'missing.*stages\.2\.0\.norm'):
        pretrained(tmp_path / 'cut.pth', arch=thin_arch).init_weights()


def break_missing(state_dict):
    del state_dict['layer2.ConTBlock0.bn.weight']


def break_unexpected(state_dict):
    state_dict['layer2.ConTBlock1.bn.weight'] = torch.zeros(96)


def break_shape(state_dict):
    state_dict['layer2.ConTBlock0.bn.weight'] = torch.zeros(95)


@pytest.mark.parametrize(
    'damage, words',
    [
        (break_missing, r'1 missing.*stages\.1\.0\.norm\.weight'),
        (break_unexpected, r'1 unexpected.*stages\.1\.1\.norm\.weight'),
        (
            break_shape,
            r'1 of another kind.*stages\.1\.0\.norm\.weight \[95\] float32 instead of \[96\]',
        ),
    ],
)
def test_a_file_that_does_not_cover_the_backbone_changes_nothing(tmp_path, official, damage, words):
    state_dict = dict(official)
    damage(state_dict)
    torch.save(state_dict, tmp_path / 'damaged.pth')
    net = pretrained(tmp_path / 'damaged.pth', arch='Ti')
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        net.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(arch='S'), r'base_channels 48'),
        (dict(arch='M'), r'depths \[1, 1, 1, 1\]'),
        (dict(arch='Ti', position='relative'), r'position absolute in the file, relative here'),
        (dict(arch='Ti', deep_stem=True), r'deep_stem False in the file, True here'),
        (dict(arch='Ti', qkv_bias=False), r'unexpected.*qkv\.bias.*look at norm_cfg, qkv_bias'),
        (dict(arch='Ti', in_channels=1), r'stem\.conv\.weight.*in_channels 3 in the file, 1 here'),
    ],
    ids=str,
)
def test_a_file_of_another_network_is_refused_with_its_settings(tmp_path, official, options, words):
    torch.save(official, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=words):
        pretrained(tmp_path / 'other.pth', **options).init_weights()


def test_avg_down_in_the_keys_must_be_asked_for(tmp_path):
    options = backbone_options(META['S'])
    torch.save(official_state_dict(META['S']), tmp_path / 'avg_down.pth')
    pretrained(tmp_path / 'avg_down.pth', **options).init_weights()
    with pytest.raises(ValueError, match='set avg_down=True'):
        pretrained(tmp_path / 'avg_down.pth', **{**options, 'avg_down': False}).init_weights()


def test_avg_down_that_the_keys_do_not_tell_is_logged(tmp_path, official, log):
    torch.save(official, tmp_path / 'official.pth')
    pretrained(tmp_path / 'official.pth', arch='Ti', avg_down=True).init_weights()
    assert 'do not tell' in log()


@pytest.mark.parametrize('position', ['absolute', 'relative'])
def test_position_tables_of_another_window_size_are_resized(tmp_path, thin_arch, position, log):
    small = ConTNet(thin_arch, position=position)
    for name, parameter in small.named_parameters():
        if '.position.' in name:
            nn.init.constant_(parameter, 0.25)
    torch.save(small.state_dict(), tmp_path / 'small.pth')
    large = dict(thin_arch, window_sizes=((8, 16), (8, 16), (8, 16), (8, 8)))
    net = pretrained(tmp_path / 'small.pth', arch=large, position=position)
    net.init_weights()
    for name, parameter in net.named_parameters():
        if '.position.' in name:
            assert torch.allclose(parameter, torch.tensor(0.25)), name
    assert 'another window size' in log()


def test_resizing_keeps_the_place_of_values(tmp_path, thin_arch):
    small = ConTNet(thin_arch, position='relative')
    table = torch.zeros(13, 13)
    table[6:] = 1.0  # a query below its key
    parameter = small.stages[0][0].encoders[0].attn.position.table
    parameter.data[:] = table.view(-1, 1)
    torch.save(small.state_dict(), tmp_path / 'small.pth')
    large = dict(thin_arch, window_sizes=((14, 14), (7, 14), (7, 14), (7, 7)))
    net = pretrained(tmp_path / 'small.pth', arch=large, position='relative')
    net.init_weights()
    resized = net.stages[0][0].encoders[0].attn.position.table.view(27, 27)
    assert resized[:10].abs().max() < 0.05 and (resized[16:] - 1).abs().max() < 0.05


def test_a_missing_file_says_where_it_comes_from_and_how_to_do_without(thin_arch):
    net = pretrained('checkpoints/contnet-m_in1k.pth', arch=thin_arch)
    with pytest.raises(FileNotFoundError) as error:
        net.init_weights()
    for words in (
        'checkpoints/contnet-m_in1k.pth',
        '`python -m contnet_mm fetch_weights M`',
        'no licence',
        '`mim train mmpretrain configs/contnet/contnet-m_8xb64-strong_in1k.py`',
        '`cp work_dirs/contnet-m_8xb64-strong_in1k/epoch_200.pth checkpoints/contnet-m_in1k.pth`',
        '`python -m contnet_mm convert_checkpoint <download> checkpoints/contnet-m_in1k.pth '
        '--classifier`',
        'read as released',
        'init_cfg=None',
        'frozen_stages=-1',
    ):
        assert words in str(error.value)


@pytest.mark.parametrize(
    'checkpoint, arguments',
    [
        ('checkpoints/contnet-ti_in1k.pth', 'Ti'),
        ('/data/weights/contnet-b_in1k.pth', 'B --folder /data/weights'),
        ('my_own.pth', 'ARCH'),
    ],
)
def test_a_missing_file_is_fetched_to_where_it_is_missed(checkpoint, arguments):
    command = fetch_command(checkpoint)
    assert command == f'python -m contnet_mm fetch_weights {arguments}'


def write_html(path, official):
    path.write_text('\n<!DOCTYPE html><html><body>Too many downloads</body></html>')


def write_truncated(path, official):
    torch.save(official, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def write_empty(path, official):
    path.write_bytes(b'')


def write_text(path, official):
    path.write_text('version https://git-lfs.github.com/spec/v1')


def write_code(path, official):
    torch.save({**official, 'extra': RunsCode(path.parent / 'ran')}, path)


def write_legacy_code(path, official):
    torch.save({'extra': RunsCode(path.parent / 'ran')}, path, _use_new_zipfile_serialization=False)


def write_pickled_code(path, official):
    path.write_bytes(pickle.dumps(RunsCode(path.parent / 'ran')))


class SetsAttribute:
    def __reduce__(self):
        return getattr, (HistoryBuffer, 'min'), {'hidden': 1}


def write_attribute(path, official):
    torch.save({**official, 'extra': SetsAttribute()}, path)


def write_folder(path, official):
    path.mkdir()


def write_tar(path, official):
    with tarfile.open(path, 'w') as archive:
        archive.add(__file__, 'storages')


def write_program(path, official):
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path)


def write_hidden_program(path, official):
    write_program(path, official)
    with path.open('ab') as stream:  # Python takes it for no archive then, torch still does
        stream.write(b'PK\5\6')
    assert not zipfile.is_zipfile(path)


class ReachesOut:
    def __reduce__(self):
        return getattr, (HistoryBuffer, '__subclasses__')


def write_getattr(path, official):
    torch.save({**official, 'extra': ReachesOut()}, path)


def write_list(path, official):
    torch.save([1, 2], path)


def write_resnet(path, official):
    torch.save({'state_dict': {'backbone.layer1.0.conv1.weight': torch.zeros(1)}}, path)


@pytest.mark.parametrize(
    'write, words',
    [
        (write_html, 'web page'),
        (write_truncated, 'damaged or cut short'),
        (write_empty, r'0 bytes'),
        (write_text, 'refused, or is no checkpoint|damaged'),
        (write_code, r'refused.*mkdir'),
        (write_legacy_code, r'refused.*mkdir'),
        (write_pickled_code, r'refused|damaged'),
        (write_getattr, r'refused.*(getattr|asks for)'),
        (write_attribute, r'refused.*(function|attributes)'),
        (write_folder, r'a folder'),
        (write_tar, r'refused.*tar archive'),
        (write_program, r'refused.*TorchScript'),
        (write_hidden_program, r'refused.*TorchScript'),
        (write_list, 'a list, not a state dict'),
        (write_resnet, r'no ConTNet.*backbone\.layer1'),
    ],
)
def test_bad_files_give_a_clear_error_and_change_nothing(tmp_path, official, write, words):
    file = tmp_path / 'bad.pth'
    write(file, official)
    net = pretrained(file, arch='Ti')
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=re.compile(words, re.DOTALL)) as error:
        net.init_weights()
    assert str(file) in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not (tmp_path / 'ran').exists()


def test_a_checkpoint_of_mmengines_runner_loads(tmp_path, thin_arch):
    """Saved by a real Runner, log history included."""
    from tests.tiny_runner import train_briefly

    checkpoint = train_briefly(tmp_path, thin_arch)
    content = read_checkpoint(checkpoint)
    assert content['message_hub']['log_scalars']['train/loss'].current() > 0
    net = pretrained(checkpoint, arch=thin_arch)
    net.init_weights()
    assert torch.equal(net.stem.conv.weight, content['state_dict']['backbone.stem.conv.weight'])
