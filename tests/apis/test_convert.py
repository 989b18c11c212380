"""Checkpoint files change their layout without losing a tensor, or are not written at all."""

import os
import sys

import numpy as np
import pytest
import torch
from torch import nn

from contnet_mm import ConTNet
from contnet_mm.apis.convert import convert_file, read_network
from contnet_mm.checkpoint.load import load_pretrained
from contnet_mm.checkpoint.official_keys import convert_official, convert_to_official
from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.checkpoint.write import encode_checkpoint
from tests.helpers import RunsCode, run_tool
from tests.official import PARITY, backbone_options, official_state_dict, read_meta

META = {read_meta(path)['arch']: read_meta(path) for path in PARITY}
BLOCK = 'layer2.ConTBlock0.'


def loop_over_offsets(window):
    """The index of the relative position, written out token by token."""
    places = [(row, column) for row in range(window) for column in range(window)]
    return torch.tensor(
        [
            [
                (r - row + window - 1) * (2 * window - 1) + c - column + window - 1
                for row, column in places
            ]
            for r, c in places
        ]
    )


def whole_official(meta):
    """All tensors of an official file, those that the recorded filling leaves as built included."""
    state_dict = official_state_dict(meta)
    for key, shape in meta['state_dict']:
        if key.endswith('num_batches_tracked'):
            state_dict[key] = torch.tensor(7)
        elif key.endswith('relative_position_index'):
            state_dict[key] = loop_over_offsets(round(shape[0] ** 0.5))
    return state_dict


def assert_equal(found, expected):
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


@pytest.fixture(scope='module')
def official():
    return whole_official(META['Ti'])


@pytest.fixture
def source(tmp_path, official):
    torch.save({'model': official, 'epoch': 3}, tmp_path / 'official.pth')
    return tmp_path / 'official.pth'


@pytest.fixture
def classifier(tmp_path, source):
    convert_file(source, tmp_path / 'classifier.pth', 'classifier')
    return tmp_path / 'classifier.pth'


@pytest.mark.parametrize('arch', list(META))
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_official_to_classifier_and_back_gives_the_official_file(tmp_path, arch, suffix):
    if suffix == '.safetensors':
        pytest.importorskip('safetensors')
    expected = whole_official(META[arch])
    ours, back = tmp_path / f'ours{suffix}', tmp_path / f'back{suffix}'
    torch.save(expected, tmp_path / 'official.pth')
    convert_file(tmp_path / 'official.pth', ours, 'classifier')
    convert_file(ours, back, 'official')
    content = read_checkpoint(back)
    assert_equal(content['state_dict'] if suffix == '.safetensors' else content, expected)


@pytest.mark.parametrize('position', ['absolute', 'relative'])
@pytest.mark.parametrize('deep_stem', [False, True])
@pytest.mark.parametrize('avg_down', [False, True])
def test_every_variant_keeps_its_tensors_there_and_back(thin_arch, position, deep_stem, avg_down):
    net = ConTNet(thin_arch, position=position, deep_stem=deep_stem, avg_down=avg_down)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            nn.init.normal_(tensor)
    official = convert_to_official(net.state_dict(), avg_down)
    assert ('layer1.ConTBlock0.downsample.conv.conv.weight' in official) == avg_down
    assert 'layer4.ConTBlock1.downsample.conv.weight' in official
    assert ('layer0.conv_bn3.bn.running_var' in official) == deep_stem
    assert_equal(convert_official(official), net.state_dict())


def test_a_key_of_another_network_does_not_become_official():
    with pytest.raises(ValueError, match=r"1 keys are not of ConTNet.*'stages\.4\.0\.norm\.bias'"):
        convert_to_official({'stages.4.0.norm.bias': torch.zeros(1)})


@pytest.mark.parametrize('path', PARITY, ids=lambda path: path.stem)
def test_a_converted_classifier_gives_mmpretrain_the_official_logits(tmp_path, path):
    pytest.importorskip('mmpretrain')
    from mmengine.runner import load_checkpoint
    from mmpretrain.registry import MODELS
    from mmpretrain.utils import register_all_modules

    register_all_modules()
    meta = read_meta(path)
    torch.save({'model': official_state_dict(meta)}, tmp_path / 'official.pth')
    convert_file(tmp_path / 'official.pth', tmp_path / 'ours.pth', 'classifier')
    options = backbone_options(meta)
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='contnet_mm.ConTNet', out_indices=(3,), **options),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=1000,
                in_channels=ConTNet(**options, out_indices=(3,)).out_channels[-1],
            ),
        )
    )
    load_checkpoint(model, str(tmp_path / 'ours.pth'), strict=True)
    x = np.random.RandomState(224 * 10007 + 224).standard_normal((2, 3, 224, 224))
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(x.astype(np.float32)), mode='tensor')
    with np.load(path) as file:
        expected = file['224x224/eval/logits']
    assert np.abs(logits.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_backbone_alone_loads_into_the_backbone(tmp_path, source, official):
    convert_file(source, tmp_path / 'new' / 'ours.pth')
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['ours.pth']
    content = torch.load(tmp_path / 'new' / 'ours.pth', weights_only=True)
    assert not any(key.startswith('head') for key in content['state_dict'])
    net = ConTNet('Ti')
    load_pretrained(net, str(tmp_path / 'new' / 'ours.pth'))
    assert_equal(net.state_dict(), convert_official(official))


def test_the_backbone_of_a_detector_becomes_official(tmp_path, thin_arch):
    net = ConTNet(thin_arch, position='relative')
    state_dict = {f'backbone.{key}': value for key, value in net.state_dict().items()}
    state_dict['neck.conv.weight'] = torch.zeros(1)
    torch.save({'state_dict': state_dict, 'meta': {}}, tmp_path / 'detector.pth')
    lines = convert_file(tmp_path / 'detector.pth', tmp_path / 'back.pth', 'official')
    assert '1 tensors of other parts' in lines[0]
    assert_equal(read_checkpoint(tmp_path / 'back.pth'), convert_to_official(net.state_dict()))
    arch = read_network(tmp_path / 'back.pth').options['arch']
    told = ('base_channels', 'depths', 'num_heads', 'feedforward_channels', 'window_sizes')
    assert all(arch[key] == thin_arch[key] for key in told)


def test_the_report_tells_what_the_file_tells_and_what_it_does_not(tmp_path, source):
    read, told, untold, written = convert_file(source, tmp_path / 'ours.pth', 'classifier')
    assert 'official network' in read and 'classifier of 1000 classes' in read
    assert f'{len(ConTNet("Ti").state_dict())} tensors' in read
    assert 'arch tiny' in told and 'position absolute' in told and 'deep_stem False' in told
    assert untold.endswith('avg_down, pre_norm')
    assert 'head.fc' in written


def test_a_proof_of_avg_down_outlives_the_official_keys(tmp_path):
    torch.save(official_state_dict(META['S']), tmp_path / 'official.pth')
    for suffix in ('.pth', '.safetensors'):
        if suffix == '.safetensors':
            pytest.importorskip('safetensors')
        ours = tmp_path / f'ours{suffix}'
        lines = convert_file(tmp_path / 'official.pth', ours)
        assert lines[2] == 'recorded in the file: avg_down True'
        assert lines[3].endswith('config: pre_norm')
        options = backbone_options(META['S'])
        load_pretrained(ConTNet(**options), str(ours))
        with pytest.raises(ValueError, match='set avg_down=True'):
            load_pretrained(ConTNet(**{**options, 'avg_down': False}), str(ours))


@pytest.mark.parametrize('layout', ['backbone', 'classifier'])
def test_what_the_user_states_is_recorded(tmp_path, source, layout):
    stated = dict(avg_down=True, pre_norm=False)
    lines = convert_file(source, tmp_path / 'ours.pth', layout, stated=stated)
    assert 'stated by you: avg_down True, pre_norm False' in lines
    load_pretrained(ConTNet('Ti', avg_down=True), str(tmp_path / 'ours.pth'))
    with pytest.raises(ValueError, match='set avg_down=True'):
        load_pretrained(ConTNet('Ti'), str(tmp_path / 'ours.pth'))


def test_what_the_user_states_wins_over_the_file(tmp_path, thin_arch):
    net = ConTNet(thin_arch, avg_down=True)
    torch.save(net.state_dict(), tmp_path / 'ours.pth')
    convert_file(tmp_path / 'ours.pth', tmp_path / 'official.pth', 'official')
    convert_file(tmp_path / 'official.pth', tmp_path / 'other.pth', stated={'avg_down': False})
    load_pretrained(ConTNet(thin_arch), str(tmp_path / 'other.pth'))
    with pytest.raises(ValueError, match='set avg_down=True'):
        load_pretrained(ConTNet(thin_arch), str(tmp_path / 'official.pth'))


def test_only_what_keys_do_not_tell_can_be_stated(tmp_path, source):
    with pytest.raises(ValueError, match="'deep_stem': True"):
        convert_file(source, tmp_path / 'ours.pth', stated={'deep_stem': True})


def test_a_note_of_an_early_converter_still_counts(tmp_path, thin_arch):
    content = dict(state_dict=dict(ConTNet(thin_arch).state_dict()), meta={})
    content['meta']['contnet'] = {'avg_down': True}
    torch.save(content, tmp_path / 'ours.pth')
    with pytest.raises(ValueError, match='set avg_down=True'):
        load_pretrained(ConTNet(thin_arch), str(tmp_path / 'ours.pth'))


def remove_tensor(state_dict):
    del state_dict[BLOCK + 'bn.weight']


def remove_stem(state_dict):
    del state_dict['layer0.conv.conv.weight']


def add_tensor(state_dict):
    state_dict[BLOCK + 'gate'] = torch.zeros(1)


def add_block(state_dict):
    state_dict['layer2.ConTBlock1.bn.weight'] = torch.zeros(96)


def change_shape(state_dict):
    state_dict[BLOCK + 'bn.weight'] = torch.zeros(95)


def flatten_table(state_dict):
    state_dict[BLOCK + 'ste1.mlp.fc1.weight'] = torch.zeros(3)


def empty_table(state_dict):
    state_dict[BLOCK + 'ste1.pe.0'] = torch.tensor(1.0)


def narrow_head(state_dict):
    state_dict['fc.weight'] = torch.zeros(1000, 5)


def halve_head(state_dict):
    del state_dict['fc.bias']


def remove_head(state_dict):
    del state_dict['fc.bias'], state_dict['fc.weight']


@pytest.mark.parametrize(
    'damage, words',
    [
        (remove_tensor, r'1 missing.*stages\.1\.0\.norm\.weight'),
        (remove_stem, r'1 are missing.*stem\.conv\.weight'),
        (add_tensor, r'not of the official ConTNet.*gate'),
        (add_block, r'missing.*stages\.1\.1'),
        (change_shape, r'stages\.1\.0\.norm\.weight \[95\] float32 instead of \[96\]'),
        (flatten_table, r'too few axes.*stages\.1\.0\.encoders\.0\.ffn\.fc1\.weight'),
        (empty_table, r'too few axes.*stages\.1\.0\.encoders\.0\.position\.rows'),
        (narrow_head, r'classifier of .* does not fit.*768\].*\[1000, 5\]'),
        (halve_head, r'classifier of .* does not fit'),
        (remove_head, r'holds no classifier'),
    ],
)
def test_a_damaged_source_is_named_and_nothing_is_written(tmp_path, official, damage, words):
    state_dict = dict(official)
    damage(state_dict)
    torch.save(state_dict, tmp_path / 'damaged.pth')
    with pytest.raises(ValueError, match=words) as error:
        convert_file(tmp_path / 'damaged.pth', tmp_path / 'ours.pth', 'classifier')
    assert 'keys are not' in str(error.value) or 'damaged.pth' in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['damaged.pth']


def test_a_source_in_the_asked_layout_is_not_copied(tmp_path, source, classifier):
    for file, layout in ((source, 'official'), (classifier, 'classifier')):
        with pytest.raises(ValueError, match=f'{file.name} is one already'):
            convert_file(file, tmp_path / 'again.pth', layout)
    assert not (tmp_path / 'again.pth').exists()


def test_another_kind_of_file_in_the_same_layout_is_written(tmp_path, classifier):
    pytest.importorskip('safetensors')
    convert_file(classifier, tmp_path / 'ours.safetensors', 'classifier')
    convert_file(tmp_path / 'ours.safetensors', tmp_path / 'again.pth', 'classifier')
    expected, found = (read_checkpoint(tmp_path / f'{n}.pth') for n in ('classifier', 'again'))
    assert_equal(found['state_dict'], expected['state_dict'])


def test_an_existing_target_is_kept_until_overwrite(tmp_path, source):
    target = tmp_path / 'ours.pth'
    target.write_bytes(b'precious')
    with pytest.raises(ValueError, match=r'ours\.pth exists.*--overwrite'):
        convert_file(source, target)
    assert target.read_bytes() == b'precious'
    convert_file(source, target, overwrite=True)
    assert read_network(target).layout == 'backbone'


def test_the_source_is_never_overwritten(source):
    before = source.read_bytes()
    with pytest.raises(ValueError, match='is the file to convert'):
        convert_file(source, source, overwrite=True)
    assert source.read_bytes() == before


@pytest.mark.parametrize('name', ['ours', 'ours.tar', 'ours.pth.tmp'])
def test_an_unknown_suffix_is_named(tmp_path, source, name):
    with pytest.raises(ValueError, match=rf'{name} must end in one of \.pth'):
        convert_file(source, tmp_path / name)


def test_an_unknown_layout_is_named(tmp_path, source):
    with pytest.raises(ValueError, match="'backbone', 'classifier', 'official'.*got 'timm'"):
        convert_file(source, tmp_path / 'ours.pth', 'timm')


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
@pytest.mark.parametrize('exists', [False, True])
def test_an_interrupted_write_changes_nothing(tmp_path, source, monkeypatch, error, exists):
    target = tmp_path / 'ours.pth'
    if exists:
        target.write_bytes(b'precious')
    before = sorted(tmp_path.iterdir())

    def interrupt(descriptor):
        raise error

    monkeypatch.setattr(os, 'fsync', interrupt)
    with pytest.raises(error):
        convert_file(source, target, overwrite=True)
    assert sorted(tmp_path.iterdir()) == before
    assert not exists or target.read_bytes() == b'precious'


def test_a_backbone_starts_from_safetensors(tmp_path, source, official):
    pytest.importorskip('safetensors')
    file = tmp_path / 'ours.safetensors'
    convert_file(source, file)
    net = ConTNet('Ti', init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    net.init_weights()
    assert_equal(net.state_dict(), convert_official(official))


def test_damaged_safetensors_are_refused(tmp_path, source):
    pytest.importorskip('safetensors')
    file = tmp_path / 'ours.safetensors'
    convert_file(source, file)
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b'', b'<html>too many downloads</html>'):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r'ours\.safetensors .*damaged or cut short'):
            read_checkpoint(file)


def test_a_missing_safetensors_library_is_named(tmp_path, source, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    (tmp_path / 'some.safetensors').write_bytes(b'')
    with pytest.raises(ModuleNotFoundError, match='pip install safetensors'):
        convert_file(source, tmp_path / 'ours.safetensors')
    with pytest.raises(ModuleNotFoundError, match='pip install safetensors'):
        read_checkpoint(tmp_path / 'some.safetensors')
    assert not (tmp_path / 'ours.safetensors').exists()


def test_only_tensors_are_written():
    with pytest.raises(ValueError, match=r"\['epoch'\] are no tensors"):
        encode_checkpoint({'weight': torch.zeros(1), 'epoch': 3})


def test_the_script_converts_and_says_what_it_read(tmp_path, classifier, official):
    command = ('convert_checkpoint', classifier, tmp_path / 'back.pth', '--to-official')
    result = run_tool(*command, '--no-probe')
    assert result.returncode == 0 and 'arch tiny' in result.stdout, result.stderr
    assert_equal(read_checkpoint(tmp_path / 'back.pth'), official)


def test_the_script_runs_no_code_of_a_file(tmp_path, official):
    bad, marker = tmp_path / 'bad.pth', tmp_path / 'ran'
    torch.save({**official, 'extra': RunsCode(marker)}, bad)
    result = run_tool('convert_checkpoint', bad, tmp_path / 'ours.pth', '--no-probe')
    assert result.returncode == 2 and f'{bad} is refused' in result.stderr
    assert 'Traceback' not in result.stderr
    assert not marker.exists() and not (tmp_path / 'ours.pth').exists()


def test_the_script_names_a_missing_source(tmp_path):
    result = run_tool('convert_checkpoint', tmp_path / 'nowhere.pth', tmp_path / 'ours.pth')
    assert result.returncode == 2 and 'nowhere.pth does not exist' in result.stderr
