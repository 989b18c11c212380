"""The disk that checkpoints take is known before a training starts."""

import io

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from contnet_mm.apis.config import read_config
from contnet_mm.reproduce.disk import count_bytes, count_checkpoints


def test_the_size_of_a_checkpoint_is_that_of_the_file():
    # Its first stage is frozen: no optimizer state.
    for optimizer in (dict(type='SGD', momentum=0.9), dict(type='AdamW', _delete_=True)):
        config = read_config('retinanet_r18_fpn_18e_bccd-320x240')
        config.merge_from_dict(dict(optim_wrapper=dict(optimizer=dict(lr=0.1, **optimizer))))
        with DefaultScope.overwrite_default_scope(config.default_scope):
            model = MODELS.build(config.model)
            wrapper = build_optim_wrapper(model, config.optim_wrapper)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        wrapper.step()
        file = io.BytesIO()
        torch.save(dict(state_dict=model.state_dict(), optimizer=wrapper.state_dict()), file)
        assert count_bytes(config) == pytest.approx(file.tell(), rel=0.05)


def test_a_model_that_reads_values_as_it_is_built_has_a_size_too():
    assert count_bytes(read_config('resnet18_8xb32_in1k')) == pytest.approx(2 * 46.8e6, rel=0.05)


COCO = 'retinanet_contnet-m_fpn_1x_coco'
PSPNET = 'pspnet_contnet-m-d8_4xb2-40k_cityscapes-512x1024'


@pytest.mark.parametrize(
    ('name', 'hook', 'number'),
    [
        (COCO, dict(max_keep_ckpts=2), 3),  # two, and the one that is being written
        (COCO, dict(max_keep_ckpts=2, save_best='coco/bbox_mAP'), 4),
        (COCO, dict(max_keep_ckpts=-1), 12),
        (PSPNET, dict(interval=4000, max_keep_ckpts=-1), 10),
    ],
)
def test_checkpoints_that_lie_there_at_once_are_counted(name, hook, number):
    config = read_config(name, False)
    config.default_hooks.checkpoint = hook
    assert count_checkpoints(config) == number
