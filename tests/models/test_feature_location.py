"""Where maps are taken: before a block is subsampled, or behind its second encoder."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from contnet_mm import ConTNet, get_model
from contnet_mm.apis.config import read_config
from contnet_mm.engine.checkpoint_hook import CheckpointHook
from contnet_mm.engine.feature_widths import check_feature_widths
from tests.helpers import assert_close, build

STRIDES = [((1, 2, 2, 2), (1, 1, 1, 1)), ((1, 2, 1, 1), (1, 1, 2, 4))]


def twins(arch, **options):
    """Build networks of equal weights with maps of both locations."""
    block = build(arch, **options).double()
    encoder = ConTNet(arch, feature_location='encoder', **options).double().eval()
    encoder.load_state_dict(block.state_dict())
    return block, encoder


@pytest.mark.parametrize('avg_down', [False, True])
@pytest.mark.parametrize('geometry', STRIDES, ids=str)
@pytest.mark.parametrize('size', [(64, 64), (61, 83)], ids=str)
def test_the_last_map_does_not_depend_on_the_location(thin_arch, size, geometry, avg_down):
    strides, dilations = geometry
    options = dict(strides=strides, dilations=dilations, avg_down=avg_down)
    block, encoder = twins(thin_arch, **options)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert_close(block(x)[3:], encoder(x)[3:], 1e-12)


@pytest.mark.parametrize('size', [(64, 64), (61, 83)], ids=str)
def test_the_next_stage_reads_every_second_row_and_column_of_a_block_map(thin_arch, size):
    block, encoder = twins(thin_arch)
    inputs = []
    for stage in encoder.stages[1:]:
        stage[0].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    encoder(x)
    assert_close([m[:, :, ::2, ::2] for m in block(x)[:3]], inputs, 1e-12)


@pytest.mark.parametrize('out_indices', [(0,), (1, 3), (0, 2)], ids=str)
def test_only_a_stage_whose_map_is_asked_for_is_dense_and_only_needed_layers_are_built(
    thin_arch, out_indices
):
    for location in ('block', 'encoder'):
        net = ConTNet(thin_arch, out_indices=out_indices, feature_location=location)
        assert len(net.stages) == out_indices[-1] + 1
        for i, stage in enumerate(net.stages[:3]):
            is_dense = location == 'block' and i in out_indices
            if i < out_indices[-1]:
                assert stage[-1].conv.stride == ((1, 1) if is_dense else (2, 2))
        last = net.stages[-1][-1]
        is_cut = location == 'encoder' and out_indices[-1] < 3
        assert (last.conv is None) == (last.downsample is None) == is_cut


@pytest.mark.parametrize('location', ['block', 'encoder'])
@pytest.mark.parametrize('out_indices', [(0,), (2,), (1, 2), (0, 3)], ids=str)
def test_every_choice_of_maps_gives_those_of_the_whole_network(thin_arch, out_indices, location):
    whole = build(thin_arch, feature_location=location).double()
    net = ConTNet(thin_arch, out_indices=out_indices, feature_location=location).double().eval()
    state_dict = whole.state_dict()
    net.load_state_dict({key: state_dict[key] for key in net.state_dict()})
    x = torch.randn(1, 3, 45, 99, dtype=torch.float64)
    assert_close(net(x), [whole(x)[i] for i in out_indices], 1e-12)


def test_weights_of_the_other_location_load_with_a_line_that_names_it(thin_arch, log):
    block, encoder = ConTNet(thin_arch), ConTNet(thin_arch, feature_location='encoder')
    encoder.load_state_dict(block.state_dict())
    assert 'feature_location block in the weights, encoder here' in log()


def test_weights_of_a_classifier_say_nothing_of_the_location(thin_arch, log):
    ConTNet(thin_arch).load_state_dict(ConTNet(thin_arch, out_indices=(3,)).state_dict())
    assert 'feature_location' not in log()


class Model(nn.Module):
    """A backbone before what reads its maps, named and described as the libraries do."""

    def __init__(self, reader, **description):
        super().__init__()
        self.backbone = ConTNet('tiny')  # 96, 192, 384, 768
        part = nn.Identity()
        for name, value in description.items():
            setattr(part, name, value)
        setattr(self, reader, part)


@pytest.mark.parametrize(
    ('reader', 'description'),
    [
        ('neck', dict(in_channels=[48, 96, 192, 768])),
        ('decode_head', dict(in_channels=[48, 96, 192, 768], in_index=[0, 1, 2, 3])),
        ('auxiliary_head', dict(in_channels=192, in_index=2)),
    ],
)
def test_a_reader_of_other_widths_is_refused_by_a_line_that_names_the_argument(reader, description):
    with pytest.raises(ValueError, match=rf"{reader} expects .*192.*feature_location='encoder'"):
        check_feature_widths(Model(reader, **description))


@pytest.mark.parametrize(
    ('reader', 'description'),
    [
        ('neck', dict(in_channels=[96, 192, 384, 768])),
        ('neck', dict(in_channels=[1, 2])),  # reads something else
        ('decode_head', dict(in_channels=768, in_index=3)),
        ('neck', {}),
    ],
)
def test_other_readers_are_left_alone(reader, description):
    check_feature_widths(Model(reader, **description))


def test_a_run_and_a_model_by_name_refuse_a_neck_of_other_widths():
    with pytest.raises(ValueError, match="feature_location='encoder'"):
        hook = CheckpointHook()
        hook.before_run(SimpleNamespace(model=Model('neck', in_channels=[48, 96, 192, 768])))
    config = read_config('retinanet_contnet-ti_fpn_demo')
    config.model.backbone.feature_location = 'encoder'
    with pytest.raises(ValueError, match="feature_location='block'"):
        get_model(config)


@pytest.mark.parametrize(
    'name', ['retinanet_contnet-ti_fpn_demo', 'pspnet_contnet-ti-d8_demo-cityscapes']
)
def test_an_older_detector_or_segmentor_is_refused_before_it_is_loaded(name, tmp_path):
    config = read_config(name)
    older = copy.deepcopy(config.model)
    older.backbone.feature_location = 'encoder'
    if 'neck' in older:
        older.neck.in_channels = [48, 96, 192, 768]
    else:
        older.auxiliary_head.in_channels = 192
    config.work_dir = str(tmp_path)
    runner = Runner.from_cfg(config)
    state_dict = MODELS.build(older).state_dict()
    del state_dict._metadata  # as of files from before the location was recorded
    torch.save(dict(state_dict=state_dict), tmp_path / 'older.pth')
    before = copy.deepcopy(runner.model.state_dict())
    line = "trained with feature_location='encoder'.*-encoder-maps"
    with pytest.raises(ValueError, match=line):
        runner.load_checkpoint(str(tmp_path / 'older.pth'))
    assert all(torch.equal(x, before[key]) for key, x in runner.model.state_dict().items())
    with pytest.raises(ValueError, match=line):
        get_model(config, str(tmp_path / 'older.pth'))
