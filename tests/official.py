"""Made-up official checkpoints: the recorded numbers of the official network and their filling."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

PARITY = sorted((Path(__file__).parent / 'parity').glob('*.npz'))


def read_meta(path):
    with np.load(path) as file:
        return json.loads(str(file['meta']))


def official_state_dict(meta, dtype=torch.float32):
    """Fill the official tensors by the rule that the recorded numbers were made with."""
    return {
        key: _fill(key, shape).to(dtype) for key, shape in meta['state_dict'] if _is_filled(key)
    }


def _is_filled(key):
    return not key.endswith(('num_batches_tracked', 'relative_position_index'))


def _fill(key, shape):
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith('running_var'):
        value = 1 + 0.1 * np.abs(noise)
    elif len(shape) >= 2:
        value = noise / np.sqrt(np.prod(shape[1:]))
    elif key.endswith('weight'):
        value = 1 + 0.1 * noise
    else:
        value = 0.1 * noise
    return torch.from_numpy(np.asarray(value, dtype=np.float64))


def backbone_options(meta):
    """Arguments of ConTNet for the options of the official network."""
    options = meta['options']
    return dict(
        arch=meta['arch'],
        position='relative' if options['relative'] else 'absolute',
        pre_norm=options['pre_norm'],
        qkv_bias=options['qkv_bias'],
        avg_down=options['use_avgdown'],
    )
