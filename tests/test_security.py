"""What SECURITY.md says of our reading and of MMEngine's, as far as no other test holds it."""

import ast
import json
import pickle
import struct
import zlib

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import load_checkpoint
from PIL import Image
from torch import nn

from contnet_mm.apis.config import read_config
from contnet_mm.apis.launch import library_of
from contnet_mm.checkpoint.read import read_checkpoint
from contnet_mm.datasets.check import check_parts
from contnet_mm.datasets.check.files import open_images
from contnet_mm.datasets.check.from_config import parts_of_config
from contnet_mm.datasets.check.issues import Report
from contnet_mm.datasets.own.images import measure
from contnet_mm.datasets.own.read import read_data
from tests.helpers import ROOT, RunsCode

OURS = [*ROOT.glob('contnet_mm/**/*.py'), *ROOT.glob('tools/**/*.py'), ROOT / 'hubconf.py']
# Calls that can run code of what they read, or expand it without end.
UNSAFE = {
    *('eval', 'exec', 'os.system', 'os.popen', 'pickle.load', 'pickle.loads', 'marshal.loads'),
    *('yaml.load', 'yaml.full_load', 'yaml.unsafe_load', 'np.load', 'joblib.load', 'dill.load'),
    *('ElementTree.parse', 'ElementTree.fromstring', 'minidom.parse', 'minidom.parseString'),
    *('mmengine.load', 'load_checkpoint', '_load_checkpoint', 'CheckpointLoader.load_checkpoint'),
    *('torch.load', 'torch.jit.load', 'torch.hub.load', 'tarfile.open', 'shutil.unpack_archive'),
}
ALLOWED = {
    'contnet_mm/checkpoint/read.py': ['torch.load', 'torch.load'],
    'contnet_mm/doctor/probe.py': ['load_checkpoint'],  # of a file that it wrote itself
}


def yaml_that_runs(marker):
    # Some read a file twice.
    return f'names: !!python/object/apply:os.makedirs [{str(marker)!r}, 511, true]\n'


def test_nothing_of_ours_calls_what_can_run_code_of_a_file():
    assert len(OURS) > 100
    found = {}
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                shell = any(k.arg == 'shell' for k in node.keywords)
                if name in UNSAFE or name.endswith('.extractall') or shell:
                    found.setdefault(path.relative_to(ROOT).as_posix(), []).append(name)
    assert found == ALLOWED


def test_mmengines_own_loading_runs_code_that_a_file_holds(tmp_path):
    file, marker, net = tmp_path / 'a.pth', tmp_path / 'ran', nn.Linear(1, 1)
    torch.save({'state_dict': net.state_dict(), 'meta': RunsCode(marker)}, file)
    with pytest.raises(ValueError, match='refused.*mkdir'):
        read_checkpoint(file)
    assert not marker.exists()
    load_checkpoint(net, str(file))
    assert marker.exists()


@pytest.mark.parametrize('suffix', ['.py', '.yaml'])
def test_reading_a_config_runs_it_in_python_and_in_yaml(tmp_path, suffix):
    config, marker = tmp_path / f'config{suffix}', tmp_path / 'ran'
    python = f"__import__('os').mkdir({str(marker)!r})\ndefault_scope = 'mmdet'\n"
    yaml = yaml_that_runs(marker) + 'default_scope: mmdet\n'
    config.write_text(python if suffix == '.py' else yaml)
    assert read_config(config).default_scope == 'mmdet'
    assert marker.exists()


def test_custom_imports_run_unless_a_tool_only_asks_for_the_library(tmp_path, monkeypatch):
    marker = tmp_path / 'ran'
    (tmp_path / 'runs_on_import.py').write_text(f'import os\nos.mkdir({str(marker)!r})\n')
    config = tmp_path / 'config.json'
    content = dict(custom_imports=dict(imports=['runs_on_import']), default_scope='mmdet')
    config.write_text(json.dumps(content))
    monkeypatch.syspath_prepend(tmp_path)
    assert library_of(str(config)) == 'mmdet' and not marker.exists()
    read_config(config)
    assert marker.exists()


def test_yaml_of_a_data_set_runs_no_code(tmp_path):
    (tmp_path / 'data.yaml').write_text(yaml_that_runs(tmp_path / 'ran'))
    with pytest.raises(ValueError, match=r'data\.yaml is no YAML'):
        read_data('mmdet', tmp_path)
    assert not (tmp_path / 'ran').exists()


def test_pickled_annotations_run_code_in_mmengine_and_none_in_our_check(tmp_path):
    file, marker = tmp_path / 'annotations.pkl', tmp_path / 'ran'
    file.write_bytes(pickle.dumps(RunsCode(marker)))
    dataset = dict(type='CocoDataset', ann_file=str(file), data_prefix=dict(img=str(tmp_path)))
    config = Config(dict(default_scope='mmdet', val_dataloader=dict(dataset=dataset)))
    issues = {issue.check: issue for issue in check_parts(parts_of_config(config))}
    assert 'annotation file is no JSON' in issues['unreadable'].what and not marker.exists()
    mmengine.load(file)  # as MMEngine's BaseDataset reads it
    assert marker.exists()


def test_an_image_of_too_many_pixels_is_refused_and_not_decoded(tmp_path):
    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc)

    side = 40_000  # 1.6 thousand million pixels in a file of a hundred bytes
    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    content = (
        chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(64))) + chunk(b'IEND', b'')
    )
    (tmp_path / 'bomb.png').write_bytes(b'\x89PNG\r\n\x1a\n' + content)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / 'good.png')
    report, names = Report('data', True), ['bomb.png', 'good.png']
    opened = open_images(report, 'images', tmp_path, names, dict.fromkeys(names, 100), 'fix')
    assert [*opened] == ['good.png']
    assert 'could be decompression bomb' in report.issues[0].examples[0]
    assert measure(tmp_path / 'bomb.png') == (0, 0)
