"""The benchmark of single kernels, and the script that settles all on a GPU."""

import os
import re
import subprocess
import sys

import pytest
import torch

from contnet_mm.benchmark.kernels import make_halves, measure, one_pass, render
from contnet_mm.benchmark.plan import Size
from contnet_mm.models import kernels
from contnet_mm.models.window_layout import HAS_CUSTOM_OPS
from tests.helpers import ROOT

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
needs_kernels = pytest.mark.skipif(
    not (HAS_CUSTOM_OPS and kernels.HAS_TRITON), reason='kernels need Triton and torch 2.4'
)


def halves(side=32):
    return [*make_halves('tiny', Size(1, side, side), DEVICE, torch.float32)]


@needs_kernels
def test_what_is_timed_fused_is_what_is_timed_unfused():
    for half in halves(28):  # whole windows, whose order of tokens is that of the map
        whole = half.x[:, :7, :7]
        if half.kind == 'attention' and half.window != 7:
            continue
        with torch.no_grad():
            fused, plain = (half.run(flag)(whole.contiguous()) for flag in (True, False))
        assert (fused.flatten() - plain.flatten()).abs().max() <= 1e-4 * plain.abs().max()


@needs_kernels
def test_a_half_is_listed_for_each_stage_and_window():
    listed = [(half.stage, half.kind, half.window) for half in halves()]
    assert listed[:3] == [(1, 'attention', 7), (1, 'attention', 14), (1, 'mlp', 0)]
    assert listed[-2:] == [(4, 'attention', 7), (4, 'mlp', 0)] and len(listed) == 11


@needs_kernels
def test_rows_hold_times_of_both_passes_and_the_bytes_of_the_map():
    half = halves()[2]

    def timer(run):
        run()
        return 2.0

    forward, both = measure(half, timer)
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
    rows = measure(halves()[2], lambda run: run() or 1.0)
    assert rows[0]['error'] == 'RuntimeError: out of resources'
    assert '| failed: RuntimeError: out of resources | - |' in render(rows)


@needs_kernels
def test_the_backward_pass_reaches_input_and_weights():
    for half in halves()[:3]:
        one_pass(half, fused=False, backward=True)()


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
