"""What a config is for is told from its model's class alone."""

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from contnet_mm.apis.config import read_config
from contnet_mm.swap.edit import walk
from contnet_mm.swap.task import kind_of, library_of, type_name

KINDS = {
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py': 'detection',
    'mmdet::rpn/rpn_r50_fpn_1x_coco.py': 'detection',
    'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py': 'detection',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': 'detection',
    'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py': 'instance segmentation',
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': 'instance segmentation',
    'mmdet::solo/solo_r50_fpn_1x_coco.py': 'instance segmentation',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': 'instance segmentation',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py': 'panoptic segmentation',
    'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py': 'panoptic segmentation',
    'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py': 'semantic segmentation',
    'mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py': 'semantic segmentation',
    'mmpretrain::resnet/resnet50_8xb32_in1k.py': 'classification',
    'mmpretrain::csra/resnet101-csra_1xb16_voc07-448px.py': 'classification',
    'mmdet::qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py': 'tracking',
    'mmdet::masktrack_rcnn/masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019.py': 'tracking',
    'mmdet::reid/reid_r50_8xb32-6e_mot17train80_test-mot17val20.py': 're-identification',
    'mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365.py': 'grounding',
    'mmseg::vpd/vpd_sd_4xb8-25k_nyu-480x480.py': 'depth estimation',
    'mmseg::san/san-vit-b16_coco-stuff164k-640x640.py': 'multimodal',
    'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py': 'self-supervised',
    'mmpretrain::blip/blip-base_8xb32_caption.py': 'multimodal',
    'mmpretrain::arcface/resnet50-arcface_8xb32_inshop.py': 'retrieval',
}


@pytest.mark.parametrize('name', KINDS)
def test_kinds_of_the_zoo(name):
    config = read_config(name, import_custom_modules=False)
    assert kind_of(config) == KINDS[name]


def test_a_semi_supervised_detector_is_what_it_trains():
    model = dict(type='SoftTeacher', detector=dict(type='PanopticFPN'))
    assert kind_of(Config(dict(default_scope='mmdet', model=model))) == 'panoptic segmentation'


def test_lanes_are_no_boxes():
    models = pytest.importorskip('mmdet.models')
    if not hasattr(models, 'CLRNet'):
        pytest.skip('this MMDetection knows no lanes')
    config = Config(dict(default_scope='mmdet', model=dict(type='CLRNet')))
    assert kind_of(config) == 'lane detection'


def test_a_classifier_without_a_head_is_there_for_its_features():
    model = dict(type='ImageClassifier', backbone=dict(type='ViTSAM'), head=None)
    assert kind_of(Config(dict(default_scope='mmpretrain', model=model))) == 'feature extraction'


def test_a_class_in_place_of_its_name_says_the_same():
    from mmdet.models import RetinaNet

    config = Config(dict(model=dict(type=RetinaNet)))
    assert library_of(config) == 'mmdet'
    assert kind_of(config) == 'detection'
    assert type_name(config.model) == 'RetinaNet'


@pytest.mark.parametrize('model', [None, {}, 'RetinaNet'])
def test_a_config_without_a_model_says_so(model):
    assert kind_of(Config(dict(default_scope='mmdet', model=model))) == 'no model'


@pytest.mark.parametrize('kind', ['NoSuchModel', 'ResNet', None])
def test_a_class_that_is_no_model_is_unknown(kind):
    assert kind_of(Config(dict(default_scope='mmdet', model=dict(type=kind)))) == 'unknown'


def test_a_scope_in_the_type_counts_more_than_the_default():
    model = dict(type='mmdet.MaskRCNN', roi_head=dict(mask_head=dict()))
    assert kind_of(Config(dict(default_scope='mmseg', model=model))) == 'instance segmentation'


def test_asking_leaves_the_default_scope(monkeypatch):
    monkeypatch.setattr(DefaultScope, '_instance_dict', DefaultScope._instance_dict.copy())
    DefaultScope.get_instance('caller', scope_name='mmdet')
    kind_of(Config(dict(default_scope='mmseg', model=dict(type='EncoderDecoder'))))
    assert DefaultScope.get_current_instance().scope_name == 'mmdet'


def test_dicts_inside_lists_are_found_with_their_paths():
    inner = dict(type='mmdet.FPN')
    found = walk([dict(neck=[inner, (inner,)])])
    assert [(path, type_name(part)) for path, part in found] == [
        ((0,), ''),
        ((0, 'neck', 0), 'FPN'),
        ((0, 'neck', 1, 0), 'FPN'),
    ]
