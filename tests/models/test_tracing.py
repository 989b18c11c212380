"""torch.jit.trace, and what stands on it: MMEngine's and the libraries' counts of operations."""

import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.analysis import get_model_complexity_info

from contnet_mm import ConTNet
from contnet_mm.apis.complexity import count, count_config
from contnet_mm.apis.config import read_config
from contnet_mm.datasets.demo import DemoOptions, make_demo_data
from tests.helpers import POSITIONS, ROOT, assert_close, build, gradients, loss_of

CONFIGS = ROOT / 'configs'
SIZES = [(1, 3, 100, 165), (2, 3, 61, 83)]  # with windows at the border in every stage but few
# Sizes become constants of the graph, which is what a trace is.
ignore_tracer = pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')


@ignore_tracer
@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_a_trace_has_the_maps_of_the_network(thin_arch, size, grad, position):
    net = build(thin_arch, position=position)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(net, torch.randn(size))
        x = torch.randn(size)
        assert_close(traced(x), net(x))


@ignore_tracer
@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('grad', [False, True])
def test_a_trace_can_be_saved_and_loaded(thin_arch, grad, position):
    net, file = build(thin_arch, position=position), io.BytesIO()
    with torch.set_grad_enabled(grad):
        torch.jit.save(torch.jit.trace(net, torch.randn(SIZES[0])), file)
    file.seek(0)
    x = torch.randn(SIZES[0])
    assert_close(torch.jit.load(file)(x), net(x))


@ignore_tracer
@pytest.mark.parametrize('position', POSITIONS)
def test_a_trace_has_the_gradients_of_the_network(thin_arch, position):
    # In float32 a sum in another order can flip a ReLU near zero.
    net = build(thin_arch, position=position).double()
    x = torch.randn(SIZES[0], dtype=torch.float64)
    traced = torch.jit.trace(net, torch.randn_like(x))
    found = torch.autograd.grad(loss_of(traced(x)), [*traced.parameters()])
    assert_close(found, gradients(net, x), 1e-6)


@ignore_tracer
@pytest.mark.parametrize('grad', [False, True])
def test_a_trace_does_not_grow_with_the_image(thin_arch, grad):
    # 224 pixels more are whole windows more, of the shapes that are there already.
    net = build(thin_arch)
    with torch.set_grad_enabled(grad):
        small, large = (
            torch.jit.trace(net, torch.randn(1, 3, *size), check_trace=False).inlined_graph
            for size in ((260, 389), (484, 613))
        )
    # Numbers that are equal by chance are one constant.
    assert len([*large.nodes()]) == pytest.approx(len([*small.nodes()]), rel=0.005)


def total(counted):
    return counted.conv_linear_macs + counted.attention_macs


def count_with_mmengine(net, x):
    """Count as the libraries' own scripts do: with gradients, as they are outside no_grad()."""
    counted = get_model_complexity_info(net, inputs=x, show_table=False, show_arch=False)
    return counted['flops']


# MMEngine counts norms as well, less than a hundredth of the whole.
@pytest.mark.parametrize('grad', [False, True])
def test_mmengine_counts_the_attention_of_cont_ti(grad):
    with torch.set_grad_enabled(grad):
        counted = count_with_mmengine(ConTNet('tiny').eval(), torch.zeros(1, 3, 224, 224))
    assert counted == pytest.approx(1.00e9, rel=0.01)


@pytest.mark.slow
def test_mmengine_counts_the_attention_of_cont_m():
    counted = count_with_mmengine(ConTNet('medium').eval(), torch.zeros(1, 3, 224, 224))
    assert counted == pytest.approx(3.44e9, rel=0.01)


@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('size', [(224, 224), (100, 165), (260, 389)], ids=str)
def test_mmengine_counts_what_we_count(size, position):
    net, x = ConTNet('tiny', position=position).eval(), torch.zeros(1, 3, *size)
    assert count_with_mmengine(net, x) == pytest.approx(total(count(net, x)), rel=0.01)


def get_flops(library, folder, *args):
    """Run a library's own script; return the image size and the number that it prints."""
    package = Path(importlib.util.find_spec(library).origin).parent
    script = package / '.mim' / 'tools' / 'analysis_tools' / 'get_flops.py'
    result = subprocess.run(
        [sys.executable, script, *args], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    shape = re.search(r'^Input shape: \(([\d, ]+)\)$', result.stdout, re.MULTILINE)[1]
    flops = re.search(r'^Flops: ([\d.]+)([MG])$', result.stdout, re.MULTILINE)
    size = tuple(map(int, shape.split(', ')))[-2:]
    return size, float(flops[1]) * {'M': 1e6, 'G': 1e9}[flops[2]]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['retinanet_contnet-ti_fpn_demo', 'fcos_contnet-ti_fpn_demo'])
def test_the_script_of_mmdet_counts_what_our_table_says(tmp_path, name):
    make_demo_data(tmp_path / 'data' / 'demo', DemoOptions(num_train=2, num_val=1))
    path = CONFIGS / 'demo' / f'{name}.py'
    size, flops = get_flops('mmdet', tmp_path, path, '--num-images', '1')
    assert flops == pytest.approx(total(count_config(read_config(path), size)), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize('size', [(112, 112), (100, 165)], ids=str)
def test_the_script_of_mmseg_counts_what_our_table_says(tmp_path, size):
    path = CONFIGS / 'demo' / 'pspnet_contnet-ti-d8_demo-cityscapes.py'
    # Without a fixed size the image is taken as it is.
    options = ['--cfg-options', 'model.data_preprocessor.size=None', '--shape', *map(str, size)]
    found, flops = get_flops('mmseg', tmp_path, path, *options)
    assert found == size
    assert flops == pytest.approx(total(count_config(read_config(path), size)), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize('size', [(224, 224), (100, 165)], ids=str)
def test_the_script_of_mmpretrain_counts_what_our_table_says(tmp_path, size):
    path = CONFIGS / 'contnet' / 'contnet-ti_8xb32_in1k.py'
    found, flops = get_flops('mmpretrain', tmp_path, path, '--shape', *map(str, size))
    assert found == size  # of the logits, which it leaves out, there are less than a hundredth
    assert flops == pytest.approx(total(count_config(read_config(path), size)), rel=0.01)
