"""ConTLayer: the end of a ConTNet as the shared head of a C4 detector."""

import copy

import pytest
import torch
from torch import nn

from contnet_mm import ConTLayer, ConTNet
from contnet_mm.checkpoint.official_keys import convert_official
from contnet_mm.models.blocks import stage_layout
from contnet_mm.registry import MODELS
from tests.conftest import THIN_ARCH
from tests.helpers import randomize
from tests.official import PARITY, backbone_options, official_state_dict, read_meta

META = {read_meta(path)['arch']: read_meta(path) for path in PARITY}
DEEP_ARCH = dict(THIN_ARCH, depths=(1, 1, 3, 2))
C3 = 4 * THIN_ARCH['base_channels']


def whole_and_head(arch=DEEP_ARCH, **kwargs):
    """A whole network and the head made of its tensors, both double and in eval mode."""
    whole = randomize(ConTNet(arch, **kwargs)).double().eval()
    head = ConTLayer(arch, **kwargs).double().eval()
    head.load_state_dict({k: v for k, v in whole.state_dict().items() if head.owns_key(k)})
    return whole, head


def pretrained(file, arch=DEEP_ARCH, prefix=None, **kwargs):
    cfg = dict(type='Pretrained', checkpoint=str(file), prefix=prefix)
    return ConTLayer(arch, init_cfg=cfg, **kwargs)


@pytest.mark.parametrize('options', [{}, dict(position='relative', pre_norm=True)], ids=str)
@pytest.mark.parametrize('qkv_bias', [True, False])
def test_the_head_on_the_whole_third_map_gives_the_fourth_but_for_the_shortcut(options, qkv_bias):
    whole, head = whole_and_head(**options, qkv_bias=qkv_bias)
    nn.init.zeros_(whole.stages[2][-1].downsample.weight)
    with torch.no_grad():
        _, _, third, fourth = whole(torch.randn(2, 3, 224, 224, dtype=torch.float64))
        assert third.shape[2:] == (14, 14)
        assert torch.allclose(head(third), fourth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('size', [(14, 14), (9, 5), (1, 1), (15, 30)])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('position', ['absolute', 'relative'])
def test_crops_of_any_size_equal_the_parts_of_a_whole_network(size, stride, position):
    whole = randomize(ConTNet(DEEP_ARCH, strides=(1, 2, 2, stride), position=position)).eval()
    head = ConTLayer(DEEP_ARCH, stride=stride, position=position).eval()
    head.load_state_dict({k: v for k, v in whole.state_dict().items() if head.owns_key(k)})
    crops = torch.randn(3, C3, *size)
    with torch.no_grad():
        x = whole.stages[2][2].conv(crops)
        for block in whole.stages[3]:
            x, _ = block(x, stage_layout([block], x.shape[2:], x))
        out = head(crops)
    assert out.shape == (3, 128, -(-size[0] // stride), -(-size[1] // stride))
    assert torch.allclose(out, x, rtol=1e-4, atol=1e-5)
    assert out.is_contiguous()


@pytest.mark.parametrize('arch, channels', [('tiny', (192, 768)), ('medium', (256, 1024))])
def test_channels_are_those_of_the_third_and_fourth_map(arch, channels):
    head = ConTLayer(arch)
    assert (head.in_channels, head.out_channels) == ConTNet(arch).out_channels[2:] == channels
    assert head.eval()(torch.zeros(2, channels[0], 14, 14)).shape == (2, channels[1], 7, 7)


@pytest.mark.parametrize('number', [0, 2])
@pytest.mark.parametrize('position', ['absolute', 'relative'])
@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('size', [14, 9])
def test_every_parameter_gets_a_finite_gradient_from_any_number_of_crops(
    number, position, with_cp, size
):
    head = ConTLayer(DEEP_ARCH, position=position, with_cp=with_cp).train()
    crops = torch.randn(number, C3, size, size, requires_grad=True)
    head(crops).square().sum().backward()
    assert crops.grad.shape == crops.shape
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() == (number > 0), name
    statistics = [value for name, value in head.named_buffers() if 'running' in name]
    assert all(value.isfinite().all() for value in statistics)


def test_checkpointing_changes_no_value():
    plain, saving = ConTLayer(DEEP_ARCH).train(), ConTLayer(DEEP_ARCH, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    calls = []
    saving.stages['3'][0].encoders[0].register_forward_hook(lambda *args: calls.append(1))
    crops = torch.randn(2, C3, 14, 14)
    results = []
    for head in (plain, saving):
        out = head(crops)
        out.square().mean().backward()
        results.append([out, *(p.grad for p in head.parameters())])
    assert len(calls) == 2  # recomputed
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: s,
        lambda s: {'state_dict': {f'backbone.{k}': v for k, v in s.items()}},
        lambda s: {
            'state_dict': {
                **{f'backbone.{k}': v for k, v in s.items()},
                'head.fc.weight': torch.zeros(10, 128),
                'head.fc.bias': torch.zeros(10),
            },
            'meta': {'contnet': {'avg_down': True}},
        },
    ],
    ids=['backbone', 'model', 'classifier'],
)
def test_our_own_checkpoints_of_a_whole_network_load(tmp_path, log, wrap):
    whole = randomize(ConTNet(DEEP_ARCH)).state_dict()
    torch.save(wrap(whole), tmp_path / 'whole.pth')
    head = pretrained(tmp_path / 'whole.pth')
    head.init_weights()
    state_dict = head.state_dict()
    assert 'stages.2.2.conv.weight' in state_dict and 'stages.3.1.norm.running_mean' in state_dict
    assert all(torch.equal(value, whole[key]) for key, value in state_dict.items())
    total = len(state_dict)
    assert f'loaded {total} of {total} tensors of ConTLayer' in log()


@pytest.mark.parametrize('arch', ['Ti', 'S', 'M'])
def test_official_files_load_whether_or_not_shortcuts_are_pooled(tmp_path, arch):
    """The file of S was trained with avg_down, which concerns the left-out shortcut alone."""
    official = official_state_dict(META[arch])
    torch.save({'model': official}, tmp_path / 'official.pth')
    options = backbone_options(META[arch])
    del options['avg_down']
    head = pretrained(tmp_path / 'official.pth', **options)
    head.init_weights()
    converted = {k: v for k, v in convert_official(official).items() if head.owns_key(k)}
    state_dict = head.state_dict()
    assert {key for key in state_dict if not key.endswith('tracked')} == set(converted)
    assert all(torch.equal(state_dict[key], value) for key, value in converted.items())


def drop(state_dict):
    del state_dict['stages.3.0.norm.weight']


def drop_convolution(state_dict):
    del state_dict['stages.2.2.conv.weight']


def add(state_dict):
    state_dict['stages.3.1.gate.weight'] = torch.zeros(1)


def add_elsewhere(state_dict):
    state_dict['stages.1.0.gate.weight'] = torch.zeros(1)


def reshape(state_dict):
    state_dict['stages.2.2.conv.weight'] = torch.zeros(64, 32, 1, 1)


@pytest.mark.parametrize(
    'damage, words',
    [
        (drop, r'1 missing.*stages\.3\.0\.norm\.weight'),
        (drop_convolution, r'1 missing.*stages\.2\.2\.conv'),
        (add, r'1 unexpected.*stages\.3\.1\.gate'),
        (reshape, r'1 of another kind.*stages\.2\.2\.conv.*look at arch'),
    ],
)
def test_a_file_that_does_not_cover_the_head_changes_nothing(tmp_path, damage, words):
    whole = dict(ConTNet(DEEP_ARCH).state_dict())
    damage(whole)
    torch.save(whole, tmp_path / 'damaged.pth')
    head = pretrained(tmp_path / 'damaged.pth')
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(ValueError, match=f'does not fit this ConTLayer.*{words}'):
        head.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


def test_what_is_odd_outside_the_head_does_not_matter(tmp_path):
    whole = randomize(ConTNet(DEEP_ARCH)).state_dict()
    add_elsewhere(whole)
    torch.save(whole, tmp_path / 'odd.pth')
    head = pretrained(tmp_path / 'odd.pth')
    head.init_weights()
    assert all(torch.equal(value, whole[key]) for key, value in head.state_dict().items())


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(arch='M'), r'They differ in: depths'),
        (dict(arch='S'), r'of another kind.*depths and position agree: look at arch'),
        (dict(arch='Ti', position='relative'), r'They differ in: position absolute in the file'),
        (dict(arch='Ti', qkv_bias=False), r'unexpected.*qkv\.bias.*look at arch, norm_cfg and qkv'),
    ],
    ids=str,
)
def test_a_file_of_another_network_is_refused_with_its_settings(tmp_path, options, words):
    torch.save(official_state_dict(META['Ti']), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=words):
        pretrained(tmp_path / 'other.pth', **options).init_weights()


def test_the_type_is_registered_in_the_packages_own_scope():
    assert MODELS.module_dict['ConTLayer'] is ConTLayer
    assert MODELS.scope == 'contnet_mm'


def test_a_missing_file_says_where_it_comes_from():
    with pytest.raises(FileNotFoundError, match='convert_checkpoint'):
        pretrained('checkpoints/contnet-m_in1k.pth').init_weights()


class Detector(nn.Module):
    """The parts of a C4 detector that hold weights of ConTNet, where MMDetection has them."""

    def __init__(self):
        super().__init__()
        self.backbone = ConTNet(DEEP_ARCH, out_indices=(2,))
        self.roi_head = nn.Module()
        self.roi_head.shared_head = ConTLayer(DEEP_ARCH)
        self.roi_head.bbox_head = nn.Linear(128, 2)


@pytest.fixture
def detector_file(tmp_path):
    state_dict = randomize(Detector()).state_dict()
    torch.save({'state_dict': state_dict, 'meta': {'epoch': 1}}, tmp_path / 'detector.pth')
    return tmp_path / 'detector.pth', state_dict


def test_a_c4_detectors_checkpoint_gives_its_backbone_and_no_tensor_of_its_head(detector_file):
    file, state_dict = detector_file
    cfg = dict(type='Pretrained', checkpoint=str(file))
    net = ConTNet(DEEP_ARCH, out_indices=(2,), init_cfg=cfg)
    net.init_weights()
    assert all(
        torch.equal(value, state_dict[f'backbone.{key}']) for key, value in net.state_dict().items()
    )
    with pytest.raises(ValueError, match=r'missing.*stages\.2\.2\.conv\.weight'):
        ConTNet(DEEP_ARCH, init_cfg=cfg).init_weights()  # nor is a whole network pieced together


def test_a_c4_detectors_checkpoint_gives_its_head_under_the_heads_prefix(detector_file):
    file, state_dict = detector_file
    head = pretrained(file, prefix='roi_head.shared_head.')
    head.init_weights()
    assert all(
        torch.equal(value, state_dict[f'roi_head.shared_head.{key}'])
        for key, value in head.state_dict().items()
    )
    with pytest.raises(ValueError, match=r'missing.*stages\.2\.2\.conv\.weight'):
        pretrained(file).init_weights()  # the detector's backbone ends before the head


def test_a_detector_that_loads_its_own_checkpoint_may_train_frozen_norms(detector_file, recwarn):
    model = Detector()
    model.roi_head.shared_head = ConTLayer(DEEP_ARCH, norm_eval=True)
    with pytest.warns(UserWarning, match='no weights were loaded'):
        model.train()
    model.load_state_dict(detector_file[1])  # as `load_from` does, with the prefix of the head
    recwarn.clear()
    model.train()
    assert not recwarn.list


def test_frozen_norms_keep_their_values_and_statistics():
    head = ConTLayer(DEEP_ARCH, norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True)
    head.load_state_dict(head.state_dict())
    assert head.train() is head and head.training
    before = {name: value.clone() for name, value in head.named_buffers()}
    head(torch.randn(2, C3, 14, 14)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in head.named_buffers())
    fixed = {name for name, p in head.named_parameters() if not p.requires_grad}
    assert fixed == {f'stages.3.{b}.norm.{p}' for b in (0, 1) for p in ('weight', 'bias')}


@pytest.mark.parametrize(
    'options', [dict(norm_eval=True), dict(norm_cfg=dict(type='BN', requires_grad=False))], ids=str
)
def test_norms_that_are_frozen_without_weights_give_a_warning(recwarn, options):
    head = ConTLayer(THIN_ARCH, **options)
    with pytest.warns(UserWarning, match=r'ConTLayer trains.*no weights.*norm_eval=False'):
        head.train()
    recwarn.clear()
    head.eval()
    head.load_state_dict(head.state_dict())
    head.train()
    ConTLayer(THIN_ARCH).train()
    assert not recwarn.list


@pytest.mark.parametrize(
    'options, error, words',
    [
        (dict(arch='large'), ValueError, "arch 'large' is unknown"),
        (dict(stride=0), ValueError, 'stride must be at least 1, got 0'),
        (dict(stride=(2,)), TypeError, 'stride must be an integer'),
        (dict(position='both'), ValueError, "position must be .* got 'both'"),
        (dict(norm_eval=1), TypeError, 'norm_eval must be True or False'),
        (dict(norm_cfg='BN'), TypeError, 'norm_cfg must be a dict'),
        (dict(init_cfg='weights.pth'), TypeError, 'weights.pth'),
        (dict(init_cfg=dict(type='Pretrained')), ValueError, 'checkpoint'),
    ],
    ids=str,
)
def test_a_bad_argument_is_named(options, error, words):
    with pytest.raises(error, match=words):
        ConTLayer(**options)


@pytest.mark.parametrize('shape', [(2, 31, 14, 14), (32, 14, 14)])
def test_crops_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r'crops must be \[N, 32, h, w\], got \[.*14'):
        ConTLayer(THIN_ARCH)(torch.zeros(shape))


def test_mask_rcnn_c4_trains_and_predicts_with_the_shared_head(tmp_path):
    pytest.importorskip('mmdet')
    from contnet_mm.apis.config import read_config
    from tests.synthetic import build_model, make_batch

    weights = randomize(ConTNet('tiny'))
    torch.save(weights.state_dict(), tmp_path / 'tiny.pth')
    config = read_config('mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py')
    model = config.model
    model.backbone = dict(type='contnet_mm.ConTNet', arch='tiny', out_indices=(2,))
    model.rpn_head.update(in_channels=192, feat_channels=32)
    model.roi_head.bbox_roi_extractor.out_channels = 192
    model.roi_head.shared_head = dict(
        type='contnet_mm.ConTLayer',
        arch='tiny',
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth')),
    )
    model.roi_head.bbox_head.in_channels = model.roi_head.mask_head.in_channels = 768
    model.test_cfg.rcnn.score_thr = 0.0  # so that masks are predicted, before it has learnt
    detector = build_model(config)
    head = detector.roi_head.shared_head
    assert torch.equal(head.stages['2']['0']['conv'].weight, weights.stages[2][0].conv.weight)

    batch = make_batch(config, num_classes=80)
    data = detector.train().data_preprocessor(batch, training=True)
    losses = detector(**data, mode='loss')
    loss = sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if 'loss' in k)
    loss.backward()
    assert loss.isfinite() and {'loss_rpn_cls', 'loss_bbox', 'loss_mask'} <= losses.keys()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(parameter.grad.any() for parameter in head.parameters())

    with torch.no_grad():
        data = detector.eval().data_preprocessor(batch, training=False)
        found = detector(**data, mode='predict')[0].pred_instances
    assert len(found) and found.masks.shape[0] == len(found.bboxes)
