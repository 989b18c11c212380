"""Models by name: ours, those of a path, in MMPretrain's list, through torch.hub."""

import pytest
import torch
import yaml
from mmengine.registry import DefaultScope

import contnet_mm
from contnet_mm.apis.config import read_config
from contnet_mm.checkpoint.read import read_checkpoint
from tests.helpers import ROOT
from tests.thin_models import TASKS, make_model, own_model_hub

SCOPES = {
    'retinanet_contnet-ti_fpn_1x_coco': 'mmdet',
    'pspnet_contnet-m-d8_4xb2-40k_cityscapes-512x1024': 'mmseg',
    'contnet-ti_8xb32_in1k': 'mmpretrain',
}


@pytest.fixture(autouse=True)
def unrelated_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names_of_metafiles(pattern):
    files = ROOT.glob(f'configs/{pattern}/metafile.yml')
    return [model['Name'] for f in files for model in yaml.safe_load(f.read_text())['Models']]


def test_models_are_those_of_the_metafiles():
    assert contnet_mm.list_models() == sorted(names_of_metafiles('*'))
    assert contnet_mm.list_models('contnet-?_8xb32_in1k') == [
        f'contnet-{arch}_8xb32_in1k' for arch in 'bms'
    ]


def current_scope():
    instance = DefaultScope.get_current_instance()
    return instance and instance.scope_name


@pytest.mark.parametrize('name', SCOPES)
def test_a_name_gives_the_whole_model_of_its_library_with_random_weights(name):
    scope = current_scope()
    torch.manual_seed(0)
    model = contnet_mm.get_model(name)
    assert type(model).__module__.startswith(f'{SCOPES[name]}.models.')
    assert isinstance(model.backbone, contnet_mm.ConTNet) and not model.training
    assert not any(module.training for module in model.modules())
    assert len(model.dataset_meta['classes']) == {'mmdet': 80, 'mmseg': 19}.get(SCOPES[name], 1000)
    assert current_scope() == scope
    other = contnet_mm.get_model(name)
    assert not torch.equal(other.backbone.stem[0].weight, model.backbone.stem[0].weight)


@pytest.mark.parametrize('scope', TASKS)
def test_a_checkpoint_is_loaded_wholly(scope, tmp_path):
    config, checkpoint = make_model(tmp_path, scope, meta={'dataset_meta': {'classes': ('cell',)}})
    model = contnet_mm.get_model(str(config), checkpoint)
    expected = read_checkpoint(checkpoint)['state_dict']
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert model.dataset_meta['classes'] == ('cell',)
    torch.save({'state_dict': dict(list(expected.items())[1:])}, checkpoint)
    with pytest.raises(ValueError, match=f'{scope}.pth does not fit the config: it lacks 1 of'):
        contnet_mm.get_model(read_config(config), checkpoint)


def test_images_are_normalised_as_the_config_says():
    model = contnet_mm.get_model('contnet-ti_8xb32_in1k')
    out = model.data_preprocessor({'inputs': [torch.full((3, 32, 32), 255, dtype=torch.uint8)]})
    # White in ImageNet's statistics, red first.
    expected = torch.tensor([(255 - 123.675) / 58.395, (255 - 116.28) / 57.12, 2.64])
    assert torch.allclose(out['inputs'].mean((0, 2, 3)), expected, atol=1e-3)


def test_building_leaves_the_config_as_it_was():
    config = read_config('retinanet_contnet-ti_fpn_1x_coco')
    before = config.pretty_text
    contnet_mm.get_model(config)
    assert config.pretty_text == before


def test_an_unknown_name_is_an_error_with_what_may_be_meant():
    with pytest.raises(ValueError, match='did you mean contnet-ti_8xb32_in1k'):
        contnet_mm.get_model('contnet-ti_8xb32_ink')


def test_mmpretrain_knows_our_classifiers_by_name(tmp_path):
    import mmpretrain

    ours = names_of_metafiles('contnet')
    before = set(mmpretrain.list_models())
    with own_model_hub() as hub:
        contnet_mm.register_mmpretrain()
        contnet_mm.register_mmpretrain()
        assert set(mmpretrain.list_models()) == before | set(ours)
        assert mmpretrain.list_models('*contnet*') == sorted(n for n in ours if 'contnet' in n)
        # Names that are MMPretrain's own stay its own.
        taken = sorted(before & set(ours))
        assert 'resnet50_8xb32_in1k' in taken
        assert not any(
            str(hub._models_dict[n].config).startswith(str(ROOT / 'configs')) for n in taken
        )
        model = mmpretrain.get_model('contnet-ti_8xb32_in1k')
        torch.save({'state_dict': model.state_dict()}, 'weights.pth')
        again = mmpretrain.get_model('contnet-ti_8xb32_in1k', pretrained='weights.pth')
    assert isinstance(model.backbone, contnet_mm.ConTNet)
    assert torch.equal(again.head.fc.weight, model.head.fc.weight)
    assert torch.equal(again.backbone.stem[0].weight, model.backbone.stem[0].weight)


@pytest.mark.parametrize(
    ('entry', 'width', 'depth'),
    [('contnet_ti', 48, 1), ('contnet_s', 64, 1), ('contnet_m', 64, 2), ('contnet_b', 64, 3)],
)
def test_torch_hub_builds_the_archs(entry, width, depth):
    net = torch.hub.load(str(ROOT), entry, source='local', out_indices=(0,))
    assert (net.base_channels, len(net.stages[0]), net.training) == (width, depth, False)
    assert 'ConT-' in torch.hub._load_entry_from_hubconf(hubconf(), entry).__doc__


def hubconf():
    return torch.hub._import_module('hubconf', str(ROOT / 'hubconf.py'))


def test_torch_hub_loads_a_file_wholly(tmp_path):
    net = contnet_mm.ConTNet('tiny')
    torch.save(net.state_dict(), tmp_path / 'weights.pth')
    load = dict(source='local', checkpoint=tmp_path / 'weights.pth')
    loaded = torch.hub.load(str(ROOT), 'contnet_ti', **load)
    assert torch.equal(loaded.stem[0].weight, net.stem[0].weight)
    with pytest.raises(ValueError, match='weights.pth'):
        torch.hub.load(str(ROOT), 'contnet_s', **load)
