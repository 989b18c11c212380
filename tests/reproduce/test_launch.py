"""Batch, learning rate, iterations and command of a training on any number of GPUs."""

from dataclasses import replace

import pytest

from contnet_mm.apis.config import find_config, read_config
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


@pytest.mark.parametrize('verb', ['train', 'test'])
@pytest.mark.parametrize(
    ('options', 'per_node', 'words'),
    [
        ((), '8', []),
        ((4, '--time=2-00:00:00 --account=A'), '4', ['--time=2-00:00:00', '--account=A']),
    ],
)
def test_mim_hands_nodes_time_and_account_to_srun(
    plan, monkeypatch, verb, options, per_node, words
):
    mim, started = pytest.importorskip(f'mim.commands.{verb}'), []
    monkeypatch.setattr(mim.subprocess, 'check_call', lambda words, **_: started.extend(words) or 0)
    cluster, config = Cluster(16, 'slurm', 'part', *options), find_config(RETINANET)
    test = make_test_command(config, 'mmdet', cluster, 'x.pth')
    train = replace(plan(config, 16), cluster=cluster).train_command()
    mim.cli.main((train if verb == 'train' else test)[2:], standalone_mode=False)
    srun = ' '.join(started)
    assert f' -p part --gres=gpu:{per_node} --ntasks=16 --ntasks-per-node={per_node} ' in srun
    assert started[started.index('--job-name=contnet_mm') + 1 : started.index('-u') - 1] == words


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((4,), '4 GPUs need a launcher'),
        ((-1,), 'at least 0, got -1'),
        ((8, 'mpi'), "got 'mpi'"),
        ((8, 'slurm'), 'Slurm needs a partition'),
        ((0, 'slurm', 'part'), "Slurm needs a partition and GPUs, got 'part' and 0 GPUs"),
        ((8, 'pytorch', 'part'), "partition needs the launcher slurm, got 'pytorch'"),
        ((8, 'pytorch', None, 4), 'gpus_per_node needs the launcher slurm'),
        ((8, 'pytorch', None, None, '--time=1'), 'srun_args needs the launcher slurm'),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Cluster(*arguments)
