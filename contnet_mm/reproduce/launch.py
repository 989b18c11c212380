"""How a config is trained and tested on a number of GPUs: batch, learning rate, command."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from contnet_mm.datasets.check.fixes import find_demo

LAUNCHERS = ('none', 'pytorch', 'slurm')
OF_SLURM = ('partition', 'gpus_per_node', 'srun_args')
GPUS_PER_NODE = 8
# Training images that the filters of our configs keep, by type of data set and its folder.
NUM_TRAIN_IMAGES = {
    ('CocoDataset', 'data/coco'): 117266,  # 1,021 have no box
    ('CocoDataset', 'data/bccd_data'): 205,
    ('CityscapesDataset', 'data/cityscapes'): 2975,
    ('ImageNet', 'data/imagenet'): 1281167,
    ('ADE20KDataset', 'data/ade/ADEChallengeData2016'): 20210,
}
NUM_CITYSCAPES_WITH_INSTANCES = 2965


@dataclass(frozen=True)
class Cluster:
    """What trains.

    Args:
        gpus: Their number; 0 trains on a CPU.
        launcher: One of ``LAUNCHERS``: a single process, torch's launcher, or Slurm.
        partition: Of Slurm.
        gpus_per_node: Of Slurm, at most; None stands for ``GPUS_PER_NODE``.
        srun_args: Of Slurm, such as ``--time=2-00:00:00 --account=NAME``.

    Raises:
        ValueError: If they do not fit together.
    """

    gpus: int
    launcher: str = 'none'
    partition: str | None = None
    gpus_per_node: int | None = None
    srun_args: str | None = None

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise ValueError(f'launcher must be one of {LAUNCHERS}, got {self.launcher!r}')
        if self.gpus < 0:
            raise ValueError(f'gpus must be at least 0, got {self.gpus}')
        if self.launcher == 'none' and self.gpus > 1:
            raise ValueError(
                f'{self.gpus} GPUs need a launcher, pytorch or slurm; without one there is a '
                'single process'
            )
        given = [name for name in OF_SLURM if getattr(self, name) is not None]
        if given and self.launcher != 'slurm':
            raise ValueError(f'{given[0]} needs the launcher slurm, got {self.launcher!r}')
        if self.launcher == 'slurm' and not (self.partition and self.gpus):
            raise ValueError(
                f'Slurm needs a partition and GPUs, got {self.partition!r} and {self.gpus} GPUs'
            )

    @property
    def processes(self) -> int:
        """Number of processes that train together."""
        return max(self.gpus, 1)

    def arguments(self, is_training: bool, port: int | None = None) -> list[str]:
        """Return the arguments of ``mim train`` or ``mim test``."""
        if self.launcher == 'none':
            # mim's script for testing has no default; that of training knows one.
            return [] if is_training or not self.gpus else ['--gpus', '1']
        arguments = ['--launcher', self.launcher, '--gpus', str(self.gpus)]
        if self.launcher == 'slurm':
            per_node = min(self.gpus, self.gpus_per_node or GPUS_PER_NODE)
            arguments += ['--partition', str(self.partition), '--gpus-per-node', str(per_node)]
            srun_args = f'--job-name=contnet_mm {self.srun_args or ""}'.strip()
            arguments += ['--cpus-per-task', '4', '--srun-args', srun_args]
        elif port is not None:
            arguments += ['--port', str(port)]
        return arguments


@dataclass(frozen=True)
class Launch:
    """A training of a config.

    Attributes:
        config: Path or name, as ``mim`` takes it.
        library: The one whose scripts train and test it.
        cluster: What trains.
        images_per_gpu: Images per process and iteration.
        lr: Learning rate after scaling.
        iterations: Number of iterations; None if the number of images is not known.
        options: Further settings for training alone, by key of the config.
        scales: Whether the library's script scales the learning rate (``--auto-scale-lr``).
    """

    config: str
    library: str
    cluster: Cluster
    images_per_gpu: int
    lr: float
    iterations: int | None
    options: Mapping[str, object]
    scales: bool

    @property
    def batch(self) -> int:
        """Images per iteration of all processes."""
        return self.images_per_gpu * self.cluster.processes

    def train_command(
        self,
        work_dir: str | Path | None = None,
        options: Mapping[str, object] | None = None,
        resume: bool = False,
        port: int | None = None,
    ) -> list[str]:
        """Return the command that trains.

        Args:
            work_dir: Where log and checkpoints go; None leaves it to the library.
            options: Further settings.
            resume: Go on from the last checkpoint.
            port: Of torch's launcher; None lets ``mim`` choose one.
        """
        command = ['mim', 'train', self.library, self.config]
        command += self.cluster.arguments(is_training=True, port=port)
        command += _name_folder(work_dir) + ['--auto-scale-lr'] * self.scales
        command += ['--resume'] * resume
        return command + list_options({**self.options, **(options or {})})


def make_test_command(
    config: str,
    library: str,
    cluster: Cluster,
    checkpoint: str | Path,
    work_dir: str | Path | None = None,
    options: Mapping[str, object] | None = None,
    port: int | None = None,
) -> list[str]:
    """Return the command that tests a checkpoint; for arguments see :class:`Launch`."""
    command = ['mim', 'test', library, config, '--checkpoint', str(checkpoint)]
    command += cluster.arguments(is_training=False, port=port) + _name_folder(work_dir)
    return command + list_options(options or {})


def _name_folder(work_dir: str | Path | None) -> list[str]:
    return [] if work_dir is None else ['--work-dir', str(work_dir)]


def plan_launch(name: str, config: Config, cluster: Cluster) -> Launch:
    """Plan a training by the rules of docs/train.md.

    Segmentors count iterations: the batch stays, and the images per GPU change. In all other
    trainings the images per GPU stay, and the learning rate follows the batch.

    Args:
        name: Path or name of the config, for commands.
        config: What it says, read.
        cluster: What trains.

    Raises:
        ValueError: If the batch of a segmentor cannot be divided among the GPUs.
    """
    library, options, scales = config.default_scope, {}, False
    images = config.train_dataloader.batch_size
    base_batch = config.auto_scale_lr.base_batch_size
    lr = config.optim_wrapper.optimizer.lr
    if library == 'mmseg':
        if base_batch % cluster.processes:
            fitting = [n for n in range(1, base_batch + 1) if base_batch % n == 0]
            raise ValueError(
                f'{name} trains on batches of {base_batch} images, which {cluster.gpus} GPUs '
                f'cannot share evenly; take one of {fitting}'
            )
        if base_batch // cluster.processes != images:
            images = base_batch // cluster.processes
            options['train_dataloader.batch_size'] = images
    else:
        batch = images * cluster.processes
        scales = batch != base_batch
        lr *= batch / base_batch
    iterations = count_iterations(config, images * cluster.processes)
    return Launch(name, library, cluster, images, lr, iterations, options, scales)


def name_last_checkpoint(config: Config) -> str:
    """Return the name that MMEngine gives the last checkpoint of a training."""
    if 'max_iters' in config.train_cfg:
        return f'iter_{config.train_cfg.max_iters}.pth'
    return f'epoch_{config.train_cfg.max_epochs}.pth'


def count_iterations(config: Config, batch: int) -> int | None:
    """Return how many iterations a training takes; None if the number of images is not known."""
    if 'max_iters' in config.train_cfg:
        return config.train_cfg.max_iters
    images = count_images(config.train_dataloader.dataset)
    return None if images is None else math.ceil(images / batch) * config.train_cfg.max_epochs


def count_images(dataset: Mapping) -> int | None:
    """Return how many training images a data set has after the filters of its config.

    Those of published data sets are known; the demo's stand in its settings once it is made.
    """
    kind = dataset['type'].split('.')[-1]
    if 'datasets' in dataset:
        counts = [count_images(part) for part in dataset['datasets']]
        return None if None in counts else sum(counts)
    if 'dataset' in dataset:
        count = count_images(dataset['dataset'])
        return None if count is None else count * dataset.get('times', 1)
    root = str(dataset.get('data_root', '')).rstrip('/')
    known = NUM_TRAIN_IMAGES.get((kind, root))
    if known is None:
        return _count_demo(Path(root))
    return (
        NUM_CITYSCAPES_WITH_INSTANCES if 'ann_file' in dataset and 'Cityscapes' in kind else known
    )


def _count_demo(root: Path) -> int | None:
    """Return the number of training images in a folder of the demo data, such as data/demo/coco."""
    demo = find_demo(root)
    if demo is None:
        return None
    if root.name == 'imagenet':  # a crop per digit
        return sum(len([*folder.iterdir()]) for folder in (root / 'train').iterdir())
    return demo[1]['train']


def list_options(options: Mapping[str, object]) -> list[str]:
    """Return settings as arguments of the libraries' scripts."""
    texts = [f'{key}={value}' for key, value in options.items()]
    return ['--cfg-options', *texts] if texts else []
