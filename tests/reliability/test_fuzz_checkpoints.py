"""Damaged and forged checkpoint files: none runs code, half-loads, hangs or takes over 2 GB."""

import shutil
from collections import OrderedDict
from collections.abc import Mapping
from unittest.mock import patch

import pytest
import safetensors.torch
import torch
from torch import _weights_only_unpickler

from contnet_mm.apis.convert import LAYOUTS, convert_file, read_network
from contnet_mm.apis.publish import publish_checkpoint
from contnet_mm.checkpoint.load import load_pretrained
from contnet_mm.checkpoint.official_keys import convert_official, is_official
from contnet_mm.checkpoint.options import strip_wrappers
from contnet_mm.checkpoint.read import EXTRA_GLOBALS
from tests.reliability.checkpoint_mutants import Mutants, make_net
from tests.reliability.forks import assert_all_pass

TOTAL = 5000
LONGEST_MESSAGE = 4000


def strict_state(path, net):
    """Return what a strict load of a file gives, read by torch itself."""
    if path.suffix == '.safetensors':
        found = safetensors.torch.load_file(path)
    else:
        known = {**_weights_only_unpickler._get_allowed_globals(), **EXTRA_GLOBALS}
        # safe_globals() does this from torch 2.5 on.
        with patch.object(_weights_only_unpickler, '_get_allowed_globals', lambda: known):
            found = torch.load(path, map_location='cpu', weights_only=True)
    while any(isinstance(found.get(key), Mapping) for key in ('state_dict', 'model')):
        found = next(found[k] for k in ('state_dict', 'model') if isinstance(found.get(k), Mapping))
    tensors = {strip_wrappers(str(k)): v for k, v in found.items() if torch.is_tensor(v)}
    if any(key.startswith('backbone.') for key in tensors):
        tensors = {k[9:]: v for k, v in tensors.items() if k.startswith('backbone.')}
    tensors = OrderedDict(convert_official(tensors) if is_official(tensors) else tensors)
    state = net.state_dict()
    for key in state:
        if key in tensors:
            value = state[key].clone()
            value.copy_(tensors[key].detach())  # raises for another shape
            state[key] = value
        else:
            assert key.endswith('num_batches_tracked'), key
    return state


def bits(state):
    return {key: value.contiguous().numpy().tobytes() for key, value in state.items()}


def refusal(error, path):
    """Return the class of an error once it is known to be one that users can read."""
    text = str(error)
    assert type(error) is ValueError, f'{type(error).__name__} instead of a ValueError: {text}'
    assert str(path) in text, f'the message does not name the file: {text[:300]}'
    assert len(text) <= LONGEST_MESSAGE, f'a message of {len(text)} characters: {text[:300]}'
    assert 'weights_only' not in text, f"torch's advice to trust the file: {text}"


class Check:
    """Loads a file, and hands it to one more of those who read files."""

    def __init__(self, folder):
        self.folder, self.marker = folder, folder / 'ran'
        self.mutants = Mutants(self.marker)
        self.nets = {relative: make_net(relative) for relative in (False, True)}
        # What torch sets up when it is first needed counts for no file.
        for name in ('ours.pth', 'runner.pth', 'safetensors.safetensors'):
            path = folder / name
            path.write_bytes(self.mutants.bases.files[path.stem])
            read_network(path)
            load_pretrained(self.nets[False], str(path))

    def __call__(self, number, watch):
        kind, base, suffix, data = self.mutants.make(number)
        path = self.folder / f'{number}{suffix}'
        path.write_bytes(data)
        try:
            relative = base == 'relative'
            verdict = self.load(path, relative, watch)
            (self.convert, self.publish, self.read)[number % 3](path, watch)
            return f'{kind} {verdict}'
        except Exception as error:
            error.args = (f'{kind} of {base}: {error}',)
            raise
        finally:
            path.unlink()

    def load(self, path, relative, watch):
        net = self.nets[relative]
        before = bits(net.state_dict())
        refused = self.attempt(lambda: load_pretrained(net, str(path)), path, watch)
        after = bits(net.state_dict())
        if refused:
            assert after == before, 'refused, but the network has changed'
            return 'refused'
        expected = strict_state(path, make_net(relative))
        wrong = [key for key in after if after[key] != bits(expected)[key]]
        assert not wrong, f'loads other values than a strict load, in {wrong[:3]}'
        return 'loaded'

    def attempt(self, action, path, watch, allowed=None):
        """Return whether a file is refused; nothing else may happen."""
        watch.seen.clear()
        watch.active = True
        try:
            action()
            refused = False
        except Exception as error:
            watch.active = False
            refusal(error, path)
            refused = True
        finally:
            watch.active = False
        seen = [line for line in watch.seen if not (allowed and str(allowed) in line)]
        assert not seen, f'does more than reading: {seen}'
        assert not self.marker.exists(), 'code in the file was run'
        return refused

    def convert(self, path, watch):
        layout = [*LAYOUTS][len(path.stem) % 3]
        out = self.empty()
        target = out / f'{path.stem}.pth'
        refused = self.attempt(lambda: convert_file(path, target, layout), path, watch, out)
        self.check_written(out, refused)

    def publish(self, path, watch):
        out = self.empty()
        prefix = out / path.stem
        refused = self.attempt(lambda: publish_checkpoint(path, prefix), path, watch, out)
        self.check_written(out, refused)

    def read(self, path, watch):
        self.attempt(lambda: read_network(path), path, watch)

    def empty(self):
        shutil.rmtree(self.folder / 'out', ignore_errors=True)
        return self.folder / 'out'

    def check_written(self, out, refused):
        left = [*out.glob('*'), *out.glob('.*')] if out.exists() else []
        assert bool(left) != refused, f'refused: {refused}, but there is {left}'
        for path in left:
            torch.load(path, weights_only=True)


def run(folder, numbers):
    check = Check(folder)
    assert check.mutants.total == TOTAL
    assert_all_pass(check, numbers, folder)


def test_some_damaged_checkpoints_are_refused_or_load_as_a_whole(tmp_path):
    run(tmp_path, range(40))


@pytest.mark.slow
def test_damaged_checkpoints_are_refused_or_load_as_a_whole(tmp_path):
    run(tmp_path, range(TOTAL))
