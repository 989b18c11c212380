"""torch.export and ONNX: graphs that do not grow with the image, and their values."""

import time

import pytest
import torch

from tests.helpers import POSITIONS, assert_close, build

# With the image, both sides get another remainder in the windows of each stage.
SIZES = [(100, 165), (260, 389)]
pytestmark = [
    pytest.mark.skipif(
        torch.__version__ < '2.5',
        reason='torch.export and torch.onnx.export(dynamo=True) are whole from torch 2.5 on',
    ),
    pytest.mark.filterwarnings('ignore:.*LeafSpec.*:FutureWarning'),
]


def image(size):
    return torch.randn(1, 3, *size)


def export(net, x):
    return torch.export.export(net, (x,))


def export_onnx(net, x):
    return torch.onnx.export(net, (x,), dynamo=True, verbose=False)


def run_onnx(program, path, x):
    """Run a program from its file, as somebody who has nothing of ours."""
    onnxruntime = pytest.importorskip('onnxruntime')
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    (argument,) = session.get_inputs()
    return [torch.from_numpy(m) for m in session.run(None, {argument.name: x.numpy()})]


@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('grad', [False, True])
def test_an_exported_network_has_its_maps(thin_arch, position, grad):
    net = build(thin_arch, position=position)
    with torch.set_grad_enabled(grad):
        module = export(net, image(SIZES[0])).module()
        x = image(SIZES[0])
        assert_close(module(x), net(x))


def test_cont_ti_can_be_exported():
    net, x = build('tiny'), image(SIZES[0])
    program = torch.export.export(net, (x,), strict=False)
    assert_close(program.module()(x), net(x))


def test_an_exported_network_can_be_saved_and_loaded(thin_arch, tmp_path):
    net, x = build(thin_arch), image(SIZES[0])
    torch.export.save(export(net, x), tmp_path / 'net.pt2')
    assert_close(torch.export.load(tmp_path / 'net.pt2').module()(x), net(x))


def test_an_exported_network_needs_no_operator_of_ours(thin_arch):
    graph = export(build(thin_arch), image(SIZES[0])).graph
    called = {str(node.target) for node in graph.nodes if node.op == 'call_function'}
    assert called and not [name for name in called if name.startswith('contnet_mm')]


def check_growth(count, position):
    """Count the nodes of ConT-Ti at three sizes; the third one has whole windows more alone."""
    net = build('tiny', position=position)
    larger = (SIZES[1][0] + 224, SIZES[1][1] + 224)
    small, medium, large = (count(net, image(size)) for size in (*SIZES, larger))
    # ONNX's optimiser folds constants up to a size, which is worth a few nodes.
    assert large == pytest.approx(medium, rel=0.02)
    # Other remainders are windows at the border of other shapes, of which there are a few at most.
    assert 0.8 <= medium / small <= 1.25


@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('grad', [False, True])
def test_the_exported_graph_of_cont_ti_does_not_grow_with_the_image(grad, position):
    with torch.set_grad_enabled(grad):
        check_growth(lambda net, x: len(export(net, x).graph.nodes), position)


@pytest.mark.slow
@pytest.mark.parametrize('position', POSITIONS)
def test_the_onnx_graph_of_cont_ti_does_not_grow_with_the_image(position):
    check_growth(lambda net, x: len(export_onnx(net, x).model_proto.graph.node), position)


@pytest.mark.slow
@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_onnxruntime_gives_the_maps_of_cont_ti(tmp_path, size, position):
    net = build('tiny', position=position)
    program, x = export_onnx(net, image(size)), image(size)
    with torch.no_grad():
        assert_close(run_onnx(program, tmp_path / 'net.onnx', x), net(x), 1e-4)


def test_onnxruntime_gives_the_maps_of_a_batch(thin_arch, tmp_path):
    net = build(thin_arch, pre_norm=True, avg_down=True, deep_stem=True)
    x = torch.randn(2, 3, 61, 83)
    program = export_onnx(net, torch.randn_like(x))
    assert_close(run_onnx(program, tmp_path / 'net.onnx', x), net(x), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('position', POSITIONS)
def test_cont_m_is_exported_at_the_size_of_detectors(tmp_path, position, capsys):
    net, x = build('medium', position=position), image((800, 1344))
    with torch.no_grad():
        start = time.perf_counter()
        program = export(net, x)
        exported = time.perf_counter()
        converted = export_onnx(program, x)
        done = time.perf_counter()
        with capsys.disabled():
            print(
                f'\nConT-M, {position}: torch.export {exported - start:.0f} s, '
                f'{len(program.graph.nodes)} nodes; torch.onnx.export {done - exported:.0f} s, '
                f'{len(converted.model_proto.graph.node)} nodes'
            )
        expected = net(x)
        assert_close(program.module()(x), expected, 1e-4)
        assert_close(run_onnx(converted, tmp_path / 'net.onnx', x), expected, 1e-4)
