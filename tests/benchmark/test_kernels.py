"""The benchmark of single kernels, and the script that checks everything on a GPU."""

import os
import re
import subprocess
import sys

import pytest
import torch

from contnet_mm.benchmark.kernels import (
    ATTENTION_KERNELS,
    make_sublayers,
    measure,
    measure_attention,
    render,
    render_attention,
)
from contnet_mm.benchmark.plan import Size
from contnet_mm.models import kernels, window_attention
from contnet_mm.models.window_attention import HAS_EFFICIENT_ATTENTION, varlen_attn
from contnet_mm.models.window_layout import HAS_CUSTOM_OPS
from tests.helpers import ROOT

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
needs_kernels = pytest.mark.skipif(
    not (HAS_CUSTOM_OPS and kernels.HAS_TRITON), reason='kernels need Triton and torch 2.4'
)


def sublayers(side=32):
    return [*make_sublayers('tiny', Size(1, side, side), DEVICE, torch.float32)]


def run_once(step):
    step()
    return 2.0


@needs_kernels
def test_what_is_timed_fused_is_what_is_timed_unfused():
    for sublayer in sublayers(28):  # whole windows, whose order of tokens is that of the map
        whole = sublayer.x[:, :7, :7]
        if sublayer.kind == 'attention' and sublayer.window_size != 7:
            continue
        with torch.no_grad():
            fused, plain = (sublayer.function(flag)(whole.contiguous()) for flag in (True, False))
        assert (fused.flatten() - plain.flatten()).abs().max() <= 1e-4 * plain.abs().max()


def test_a_sublayer_is_listed_for_each_stage_and_window_size():
    listed = [(x.stage, x.kind, x.window_size) for x in sublayers()]
    assert listed[:3] == [(1, 'attention', 7), (1, 'attention', 14), (1, 'mlp', 0)]
    assert listed[-2:] == [(4, 'attention', 7), (4, 'mlp', 0)] and len(listed) == 11


@needs_kernels
def test_rows_hold_times_of_both_passes_and_the_bytes_of_the_map():
    forward, both = measure(sublayers()[2], run_once)
    assert (forward['fused_ms'], forward['portable_ms'], forward['error']) == (2.0, 2.0, None)
    assert forward['least_mb'] == 2 * 8 * 8 * 48 * 4 / 1e6
    assert both['least_mb'] == 5 * 8 * 8 * 48 * 4 / 1e6
    table = render([forward, both])
    assert '| 1 | 48 | mlp | forward | 2.000 | 2.000 | 1.00 | 0.00 | 0% |' in table


@needs_kernels
def test_a_kernel_that_fails_is_reported_as_failed(monkeypatch):
    import contnet_mm.models.kernels.encoder as encoder

    def fail(*_, **__):
        raise RuntimeError('out of resources\nand more')

    monkeypatch.setattr(encoder, 'feed_forward', fail)
    rows = measure(sublayers()[2], run_once)
    assert rows[0]['error'] == 'RuntimeError: out of resources'
    assert '| failed: RuntimeError: out of resources | - |' in render(rows)


@pytest.mark.parametrize('number, kind', [(0, 'attention'), (2, 'mlp')])
def test_both_passes_give_gradients_of_the_map_and_of_the_own_weights(number, kind):
    sublayer = sublayers()[number]
    assert sublayer.kind == kind
    of_map, *of_weights = sublayer.make_step(fused=False, backward=True)()
    assert of_map.shape == sublayer.x.shape and of_map.abs().max() > 0
    own = ('position.', 'attn.', 'norm1.') if kind == 'attention' else ('ffn.', 'norm2.')
    names = [name for name, _ in sublayer.encoder.named_parameters()]
    for name, grad in zip(names, of_weights, strict=True):
        assert (grad is not None and grad.abs().max() > 0) == name.startswith(own), name


def test_the_forward_pass_alone_keeps_nothing_for_gradients():
    assert not sublayers()[2].make_step(fused=False, backward=False)().requires_grad


def attention_rows(arch, size, device):
    made = make_sublayers(arch, size, device, torch.bfloat16)
    return [measure_attention(x, run_once) for x in made if x.kind == 'attention']


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_each_stage_and_window_size_has_a_row_that_says_how_often_it_occurs(device):
    rows = attention_rows('medium', Size(1, 65, 99), device)
    assert [(row['stage'], row['window'], row['count']) for row in rows] == [
        *[(stage, window, 2) for stage in (1, 2, 3) for window in (7, 14)],
        (4, 7, 4),
    ]
    assert all(row[name] == 2.0 for row in rows for name in ATTENTION_KERNELS)


@pytest.mark.skipif(
    varlen_attn is None or not HAS_EFFICIENT_ATTENTION, reason='this torch lacks some of them'
)
def test_each_kernel_is_the_one_that_is_timed(monkeypatch):
    called = []
    for name in ('_flash', '_efficient', '_attend_whole'):
        function = getattr(window_attention, name)

        def spy(*args, name=name, function=function):
            called.append(name)
            return function(*args)

        monkeypatch.setattr(window_attention, name, spy)
    before = window_attention.HALF_PRECISION_KERNEL
    attention_rows('tiny', Size(1, 32, 32), 'meta')
    assert before == window_attention.HALF_PRECISION_KERNEL
    assert called == ['_flash', '_efficient', '_attend_whole'] * 7


def test_the_fastest_over_the_whole_network_is_named():
    rows = [
        dict(stage=1, window=7, count=2, flash=1.0, efficient=2.0, padded=None),
        dict(stage=1, window=14, count=4, flash=2.0, efficient=1.0, padded=0.1),
    ]
    table = render_attention(rows)
    assert '| all |  | 6 | 10.000 | 8.000 | failed |' in table
    assert "HALF_PRECISION_KERNEL = 'efficient'" in table


@pytest.mark.skipif(DEVICE == 'cuda', reason='there is a GPU')
def test_without_a_gpu_the_kernels_are_not_timed():
    command = [sys.executable, 'tools/benchmark_kernels.py']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and 'there is no CUDA device' in result.stderr


@pytest.mark.skipif(DEVICE == 'cuda', reason='there is a GPU')
@pytest.mark.parametrize(
    'arguments, message',
    [([], 'torch sees no CUDA device'), (['nowhere'], "there is no folder 'nowhere'")],
)
def test_without_a_gpu_or_wheels_the_check_says_so(arguments, message, tmp_path):
    env = dict(os.environ, PYTHON=sys.executable, OUT=str(tmp_path))
    command = ['bash', str(ROOT / 'tools/gpu_check.sh'), *arguments]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 2 and message in result.stderr


@pytest.mark.parametrize('failing, status', [('nothing', 0), ('-m gpu', 1), ('multiscale', 1)])
def test_the_check_goes_through_all_steps_and_tells_of_failures(failing, status, tmp_path):
    fake, log = tmp_path / 'python', tmp_path / 'log'
    fake.write_text(
        f"""#!/usr/bin/env bash
        cat > /dev/null < /dev/null
        echo "$*" >> '{log}'
        case "$*" in *'{failing}'*) exit 3;; esac
        """
    )
    fake.chmod(0o755)
    env = dict(os.environ, PYTHON=str(fake), OUT=str(tmp_path / 'out'))
    command = ['bash', str(ROOT / 'tools/gpu_check.sh')]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == status, result.stdout + result.stderr
    ran = log.read_text()
    steps = ('-m gpu', 'any_size', 'test_gpu', 'benchmark_kernels', 'inference', 'training')
    for part in (*steps, 'multiscale'):
        assert part in ran
    assert ('failed: exit status' in result.stdout) == bool(status)


def test_the_commands_of_the_check_are_taken_by_their_tools_within_ten_minutes():
    from tools import benchmark, benchmark_kernels

    text = (ROOT / 'tools/gpu_check.sh').read_text().replace('\\\n', ' ')
    steps = [line for line in text.splitlines() if line.startswith('step ')]
    assert len(steps) == 6 and sum(int(line.split()[2]) for line in steps) <= 575
    shared = re.search(r'tools/benchmark.py (.*) --out-dir', text)[1].split()
    commands = re.findall(r"'benchmark \w+ (.*)'", text)
    assert len(commands) == 3
    for command in commands:
        args = benchmark.make_parser().parse_args([*shared, *command.split()])
        assert args.device == 'cuda' and 'contnet-m-fused' in args.networks
    kernels = re.search(r'benchmark_kernels.py (.*) --out-dir', text)[1].split()
    assert benchmark_kernels.make_parser().parse_args(kernels).ms == 20
