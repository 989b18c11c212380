"""Try one module and print what happened as JSON; run as a script, since it may crash.

Each answer is None where a thing works, and else the error in a line.
"""

import importlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

BASES = {
    'mmdet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'mmseg': 'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'mmpretrain': 'resnet/resnet50_8xb32_in1k.py',
}


def attempt(function, *args):
    """Return None, or what went wrong; even sys.exit counts, as mim ends that way."""
    try:
        function(*args)
    except (Exception, SystemExit) as error:
        plain = re.sub(r'\x1b\[\d*m', '', str(error))  # torch prints in bold
        lines = [line.strip() for line in plain.splitlines() if line.strip()]
        return ': '.join([type(error).__name__, *lines[:1]])
    return None


def probe_torch():
    """Return what torch is built for, which GPUs it sees, and whether its neighbours work."""
    import torch

    cuda = torch.version.cuda
    driver = attempt(torch.cuda.init) if cuda else None
    usable = not driver and torch.cuda.is_available()
    return {
        'cuda': cuda,
        'hip': getattr(torch.version, 'hip', None),
        'archs': torch.cuda.get_arch_list() if cuda else [],
        'gpus': [probe_gpu(index) for index in range(torch.cuda.device_count() if usable else 0)],
        'driver': driver,
        'torchvision': attempt(importlib.import_module, 'torchvision'),
        'numpy': attempt(lambda: torch.zeros(1).numpy()),
    }


def probe_gpu(index):
    """Return the name of a GPU, its compute capability, and why it does not compute."""
    import torch

    device = torch.device('cuda', index)
    error = attempt(lambda: torch.ones(1, device=device).add(1).item())
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device), error


def run_op(device):
    """Run a compiled op of mmcv; raise RuntimeError if its result is wrong."""
    import torch
    from mmcv.ops import nms

    boxes = [[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    kept = nms(torch.tensor(boxes, device=device), scores, 0.5)[1].tolist()
    if kept != [0, 2]:
        raise RuntimeError(f'nms keeps {kept} instead of [0, 2]')


def probe_mmcv():
    """Return whose ops mmcv has, for which CUDA, and whether they work on CPU and GPU."""
    import torch

    spec, cpu = importlib.util.find_spec('mmcv._ext'), attempt(run_op, 'cpu')
    return {
        'ops': None if spec is None else 'torchvision' if spec.origin.endswith('.py') else 'mmcv',
        'built_for': None if cpu else sys.modules['mmcv.ops'].get_compiling_cuda_version(),
        'cpu': cpu,
        'cuda': attempt(run_op, 'cuda') if torch.version.cuda else None,
    }


def reload_checkpoint():
    """Write a checkpoint as the Runner does and load it again."""
    import torch
    from mmengine.logging import HistoryBuffer
    from mmengine.runner import load_checkpoint, save_checkpoint

    history = HistoryBuffer([1.0], [1])
    net = torch.nn.Linear(1, 1)
    checkpoint = {'state_dict': net.state_dict(), 'message_hub': {'log_scalars': {'loss': history}}}
    save_checkpoint(checkpoint, 'checkpoint.pth')
    load_checkpoint(net, 'checkpoint.pth', map_location='cpu')


def resolve(library):
    """Find ConTNet in a library's registry, with all its models imported, or raise LookupError."""
    registry = importlib.import_module(f'{library}.registry').MODELS
    if registry.get('contnet_mm.ConTNet') is None:
        raise LookupError('contnet_mm.ConTNet is not in the registry')


def probe_mmengine():
    """Return whether mmengine loads what it saves, and finds ConTNet."""
    return {'reload': attempt(reload_checkpoint), 'resolve': attempt(resolve, 'mmengine')}


def read_base(library):
    """Read a config whose base is one of the library's."""
    from mmengine.config import Config

    Path('config.py').write_text(f"_base_ = '{library}::{BASES[library]}'\n", encoding='utf-8')
    Config.fromfile('config.py')


def find_script(library):
    """Find the script that ``mim train LIBRARY`` would run, else raise LookupError."""
    from mim.utils import get_installed_path, is_installed, module_full_name

    name = module_full_name(library)
    if not name:
        raise LookupError(f'mim finds no unique package for the name {library}')
    if not is_installed(name):
        raise LookupError(f'mim looks for {name}, which is not installed')
    root = Path(get_installed_path(name))
    if not any((root / part / 'train.py').is_file() for part in ('.mim/tools', 'tools')):
        raise LookupError(f'mim finds {root}, which holds no tools/train.py')


def probe_library(library):
    """Return whether ConTNet, mim and configs work with a library."""
    mim = importlib.util.find_spec('mim')
    return {
        'resolve': attempt(resolve, library),
        'base': attempt(read_base, library),
        'mim': attempt(find_script, library) if mim else None,
    }


PROBES = {'torch': probe_torch, 'cv2': dict, 'mmcv': probe_mmcv, 'mmengine': probe_mmengine}


def probe(name):
    """Return the answers for one module; under 'import' why there are no others."""
    error = attempt(importlib.import_module, name)
    if error:
        return {'import': error}
    return {'import': None, **(PROBES[name]() if name in PROBES else probe_library(name))}


if __name__ == '__main__':
    sys.path.pop(0)  # this folder, whose files would hide modules of the same names
    answer = os.dup(1)
    os.dup2(2, 1)  # so that standard output has the answer alone, whatever libraries print
    os.write(answer, json.dumps(probe(sys.argv[1])).encode())
