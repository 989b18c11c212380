"""Batch, learning rate, iterations and command of a training on any number of GPUs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contnet_mm.apis.config import read_config
from contnet_mm.reproduce.launch import Cluster, count_images, make_test_command, plan_launch

RETINANET = 'retinanet_contnet-m_fpn_1x_coco.py'
PSPNET = 'pspnet_contnet-m-d8_4xb2-40k_cityscapes-512x1024.py'
CITYSCAPES = 'mask-rcnn_contnet-m_fpn_1x_cityscapes.py'
IMAGENET = 'contnet-m_8xb32_in1k.py'


@pytest.fixture(scope='module')
def plan():
    read = {}

    def plan(name, gpus):
        read[name] = read.get(name) or read_config(name, import_custom_modules=False)
        launcher = 'pytorch' if gpus > 1 else 'none'
        return plan_launch(name, read[name], Cluster(gpus, launcher))

    return plan


@pytest.mark.parametrize('name', [RETINANET, CITYSCAPES, IMAGENET])
@pytest.mark.parametrize('gpus', [0, 1, 2, 4, 8, 16])
def test_learning_rate_follows_the_batch(plan, name, gpus):
    launch, whole = plan(name, gpus), plan(name, 8)
    assert launch.batch == max(gpus, 1) * whole.images_per_gpu
    assert launch.lr / launch.batch == pytest.approx(whole.lr / whole.batch)
    assert launch.scales == (launch.batch != whole.batch)


@pytest.mark.parametrize(('gpus', 'images'), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_batch_of_a_segmentor_stays(plan, gpus, images):
    launch = plan(PSPNET, gpus)
    assert (launch.batch, launch.images_per_gpu, launch.iterations) == (8, images, 40000)
    assert launch.lr == plan(PSPNET, 4).lr and not launch.scales
    command = launch.train_command()
    assert (f'train_dataloader.batch_size={images}' in command) == (images != 2)


def test_batch_of_a_segmentor_that_cannot_be_shared_is_refused(plan):
    with pytest.raises(ValueError, match=r'8 images, which 3 GPUs .* one of \[1, 2, 4, 8\]'):
        plan(PSPNET, 3)


@pytest.mark.parametrize(
    ('name', 'gpus', 'iterations'),
    [
        (RETINANET, 8, 12 * 7330),  # as MMDetection logs it
        (RETINANET, 1, 12 * 58633),
        (CITYSCAPES, 8, 8 * 2965),  # 8 epochs of a data set that is repeated 8 times
        (IMAGENET, 8, 100 * 5005),
    ],
)
def test_iterations_are_those_of_the_data(plan, name, gpus, iterations):
    launch = plan(name, gpus)
    assert launch.iterations == iterations


def test_images_of_data_that_nobody_knows_are_unknown(tmp_path):
    assert count_images(dict(type='CocoDataset', data_root=str(tmp_path))) is None


CLUSTERS = st.builds(
    lambda gpus, launcher: Cluster(gpus, launcher, 'part' if launcher == 'slurm' else None),
    st.integers(2, 64),
    st.sampled_from(['pytorch', 'slurm']),
)


@settings(deadline=None)
@given(CLUSTERS, st.booleans())
def test_a_node_has_no_more_than_its_gpus(cluster, is_training):
    arguments = cluster.arguments(is_training)
    assert arguments[arguments.index('--gpus') + 1] == str(cluster.gpus)
    if cluster.launcher == 'slurm':
        assert int(arguments[arguments.index('--gpus-per-node') + 1]) <= 8
        assert '--srun-args' in arguments  # the fork's mim fails without


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((4,), '4 GPUs need a launcher'),
        ((-1,), 'at least 0, got -1'),
        ((8, 'mpi'), "got 'mpi'"),
        ((8, 'slurm'), 'needs a partition'),
        ((8, 'pytorch', 'part'), 'no other launcher'),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Cluster(*arguments)


def test_options_and_seed_reach_training_and_test(plan):
    launch, options = plan(RETINANET, 2), {'model.backbone.avg_down': True}
    train = launch.train_command('there', seed=3, options=options, resume=True)
    assert train[-3:] == ['--cfg-options', 'randomness.seed=3', 'model.backbone.avg_down=True']
    assert '--resume' in train and '--auto-scale-lr' in train
    test = make_test_command(RETINANET, 'mmdet', launch.cluster, 'x.pth', 'here', options)
    assert test[-4:] == ['--work-dir', 'here', '--cfg-options', 'model.backbone.avg_down=True']
