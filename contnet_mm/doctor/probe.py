"""Try one module and prints what happened; run as a script, since it may crash.

Each answer is None where a thing works, and else the error in a line.
"""

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

MARK = 'doctor-says:'
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
    """Say what torch is built for, which GPUs it sees, and how it gets on with its neighbours."""
    import torch

    said = {
        'cuda': torch.version.cuda,
        'hip': getattr(torch.version, 'hip', None),
        'archs': torch.cuda.get_arch_list() if torch.version.cuda else [],
        'gpus': [],
        'driver': attempt(torch.cuda.init) if torch.version.cuda else None,
        'torchvision': attempt(importlib.import_module, 'torchvision'),
        'numpy': attempt(lambda: torch.zeros(1).numpy()),
    }
    if not said['driver'] and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(index)
            said['gpus'].append([name, list(torch.cuda.get_device_capability(index))])
    return said


def run_op(device):
    """Run a compiled op of mmcv.

    Raises:
        RuntimeError: If the result is wrong.
    """
    import torch
    from mmcv.ops import nms

    boxes = [[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    kept = nms(torch.tensor(boxes, device=device), scores, 0.5)[1].tolist()
    if kept != [0, 2]:
        raise RuntimeError(f'nms keeps {kept} instead of [0, 2]')


def probe_mmcv():
    """Say whether mmcv's ops work on CPU and GPU."""
    import torch

    importlib.import_module('mmcv')
    return {
        'extension': attempt(importlib.import_module, 'mmcv._ext'),
        'cpu': attempt(run_op, 'cpu'),
        'cuda': attempt(run_op, 'cuda') if torch.cuda.is_available() else None,
    }


def reload_checkpoint():
    """Write a checkpoint as the Runner does and loads it again."""
    import torch
    from mmengine.logging import HistoryBuffer
    from mmengine.runner import load_checkpoint, save_checkpoint

    history = HistoryBuffer([1.0], [1])
    net = torch.nn.Linear(1, 1)
    checkpoint = {'state_dict': net.state_dict(), 'message_hub': {'log_scalars': {'loss': history}}}
    save_checkpoint(checkpoint, 'checkpoint.pth')
    load_checkpoint(net, 'checkpoint.pth', map_location='cpu')


def resolve(library):
    """Find ConTNet from a library, which imports all models of the library on the way.

    Raises:
        LookupError: If the registry does not find it.
    """
    registry = importlib.import_module(f'{library}.registry').MODELS
    if registry.get('contnet_mm.ConTNet') is None:
        raise LookupError('contnet_mm.ConTNet is not in the registry')


def probe_mmengine():
    """Say whether mmengine loads what it saves, and finds ConTNet."""
    importlib.import_module('mmengine')
    return {'reload': attempt(reload_checkpoint), 'resolve': attempt(resolve, 'mmengine')}


def read_base(library):
    """Read a config whose parent is one of the library's."""
    from mmengine.config import Config

    Path('config.py').write_text(f"_base_ = '{library}::{BASES[library]}'\n", encoding='utf-8')
    Config.fromfile('config.py')


def find_script(library):
    """Find what ``mim train LIBRARY`` would run.

    Raises:
        LookupError: If mim finds no package, or no script in it.
    """
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
    """Say whether a library imports, finds ConTNet, and is found by mim and by configs."""
    importlib.import_module(library)
    mim = importlib.util.find_spec('mim')
    return {
        'resolve': attempt(resolve, library),
        'base': attempt(read_base, library),
        'mim': attempt(find_script, library) if mim else None,
    }


def probe(name):
    """Return the answers for one module; under 'import' why there are none."""
    special = {
        'torch': probe_torch,
        'mmcv': probe_mmcv,
        'cv2': lambda: importlib.import_module('cv2') and {},
        'mmengine': probe_mmengine,
    }
    said = {}
    function = special.get(name) or (lambda: probe_library(name))
    said['import'] = attempt(lambda: said.update(function()))
    return said


if __name__ == '__main__':
    sys.path.pop(0)  # this folder, whose files would hide modules of the same names
    print(f'\n{MARK}{json.dumps(probe(sys.argv[1]))}', flush=True)
