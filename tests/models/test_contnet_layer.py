"""ConTLayer: the last stage of a ConTNet as the shared head of a C4 detector."""

import pytest
import torch
from torch import nn

from contnet_mm import ConTLayer, ConTNet
from contnet_mm.apis.config import read_config
from contnet_mm.checkpoint.official_keys import convert_official
from tests.conftest import THIN_ARCH
from tests.helpers import assert_close, build, randomize
from tests.official import PARITY, backbone_options, official_state_dict, read_meta
from tests.synthetic import build_model, make_batch

META = {read_meta(path)['arch']: read_meta(path) for path in PARITY}
WIDTH = 8 * THIN_ARCH['base_channels']  # of the third map


def pretrained(file, prefix=None, arch=THIN_ARCH, **kwargs):
    init_cfg = dict(type='Pretrained', checkpoint=str(file), prefix=prefix)
    return ConTLayer(arch, init_cfg=init_cfg, **kwargs)


@pytest.mark.parametrize('size', [(224, 224), (80, 233)], ids=['14x14 crops', '5x15 crops'])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('options', [{}, dict(position='relative', qkv_bias=False)], ids=str)
def test_backbone_and_head_are_the_whole_network(size, stride, options):
    whole = build(THIN_ARCH, out_indices=(3,), strides=(1, 2, 2, stride), **options).double()
    backbone = ConTNet(THIN_ARCH, out_indices=(2,), **options).double().eval()
    head = ConTLayer(THIN_ARCH, stride=stride, **options).double().eval()
    for part in (backbone, head):
        part.load_state_dict({k: v for k, v in whole.state_dict().items() if part.owns_key(k)})
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        found, expected = head(backbone(x)[0]), whole(x)
    assert found.is_contiguous()  # as a ResNet's
    assert_close([found], expected, 1e-12)


@pytest.mark.parametrize('with_cp', [False, True])
def test_an_image_without_proposals_gives_zero_gradients(with_cp):
    head = ConTLayer(THIN_ARCH, position='relative', with_cp=with_cp).train()
    head(torch.zeros(0, WIDTH, 14, 14, requires_grad=True)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    assert all(value.isfinite().all() for value in head.state_dict().values())


@pytest.mark.parametrize('arch', ['Ti', 'S'])
def test_an_official_file_loads_with_or_without_pooled_shortcuts(tmp_path, arch):
    official, options = official_state_dict(META[arch]), backbone_options(META[arch])
    torch.save({'model': official}, tmp_path / 'official.pth')
    assert options.pop('avg_down') == (arch == 'S')
    head = pretrained(tmp_path / 'official.pth', **options)
    head.init_weights()
    expected = convert_official(official)
    for key, value in head.state_dict().items():
        assert key.endswith('tracked') or torch.equal(value, expected[key]), key


@pytest.mark.parametrize(
    ('value', 'words'), [(None, '1 missing'), (torch.zeros(1), '1 of another kind.*look at arch')]
)
def test_a_file_that_does_not_cover_the_head_changes_nothing(tmp_path, value, words):
    whole = dict(build(THIN_ARCH).state_dict(), **{'stages.3.0.conv.weight': value})
    torch.save({k: v for k, v in whole.items() if v is not None}, tmp_path / 'damaged.pth')
    head = pretrained(tmp_path / 'damaged.pth')
    before = {k: v.clone() for k, v in head.state_dict().items()}
    with pytest.raises(ValueError, match=rf'does not fit this ConTLayer.*{words}'):
        head.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


def test_a_c4_detectors_checkpoint_gives_the_head_under_its_prefix(tmp_path):
    rois = nn.ModuleDict({'shared_head': ConTLayer(THIN_ARCH)})
    model = nn.ModuleDict({'backbone': ConTNet(THIN_ARCH, out_indices=(2,)), 'roi_head': rois})
    weights = randomize(model).state_dict()
    torch.save({'state_dict': weights}, tmp_path / 'c4.pth')
    head = pretrained(tmp_path / 'c4.pth', 'roi_head.shared_head.')
    head.init_weights()
    for key, value in head.state_dict().items():
        assert torch.equal(value, weights[f'roi_head.shared_head.{key}']), key


def test_frozen_norms_keep_their_values_and_statistics():
    head = ConTLayer(THIN_ARCH, norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True)
    with pytest.warns(UserWarning, match='ConTLayer trains with norm_eval=True.*no weights'):
        head.train()
    before = {name: value.clone() for name, value in head.named_buffers()}
    head(torch.randn(2, WIDTH, 14, 14)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in head.named_buffers())
    fixed = [name for name, p in head.named_parameters() if not p.requires_grad]
    assert len(fixed) == 4 and all(name.split('.')[-2] == 'norm' for name in fixed)


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda: ConTLayer('large'), "arch 'large' is unknown"),
        (lambda: ConTLayer(stride=0), 'stride must be at least 1, got 0'),
        (
            lambda: ConTLayer('tiny')(torch.zeros(2, 192, 14, 14)),
            r'\[N, 384, h, w\].*block.*got \[2, 192',
        ),
    ],
)
def test_a_bad_argument_is_named(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_mask_rcnn_c4_trains_and_predicts_with_the_head(tmp_path):
    pytest.importorskip('mmdet')
    weights = randomize(ConTNet('tiny')).state_dict()
    torch.save(weights, tmp_path / 'tiny.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth'))
    config = read_config('mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py')
    model, rois = config.model, config.model.roi_head
    model.backbone = dict(type='contnet_mm.ConTNet', arch='tiny', out_indices=(2,))
    model.rpn_head.update(in_channels=384, feat_channels=32)
    rois.bbox_roi_extractor.out_channels = 384
    rois.shared_head = dict(type='contnet_mm.ConTLayer', arch='tiny', init_cfg=init_cfg)
    rois.bbox_head.in_channels = rois.mask_head.in_channels = 768
    model.test_cfg.rcnn.score_thr = 0.0  # so that masks are predicted before it has learnt
    detector, batch = build_model(config), make_batch(config, num_classes=80)
    head = detector.roi_head.shared_head
    assert all(torch.equal(value, weights[key]) for key, value in head.state_dict().items())
    data = detector.train().data_preprocessor(batch, training=True)
    detector.parse_losses(detector(**data, mode='loss'))[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    assert all(p.grad.any() for p in head.parameters())
    with torch.no_grad():
        found = detector.eval().test_step(batch)[0].pred_instances
    assert len(found) and found.masks.shape[0] == len(found.bboxes)
