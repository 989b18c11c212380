"""What the doctor finds out about an environment, and what its probes say."""

from importlib import metadata

import pytest

from contnet_mm.doctor import facts
from contnet_mm.doctor.facts import PROBED, WATCHED, Distribution


def write_distribution(folder, name, version, record='', **files):
    info = folder / f'{name}-{version}.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    (info / 'RECORD').write_text(record)
    for file, text in files.items():
        (info / file.replace('_json', '.json')).write_text(text)


def read(folder):
    found = facts.read_distributions(metadata.distributions(path=[str(folder)]))
    return {dist.name: dist for dist in found}


def test_module_belongs_to_whom_its_init_file_was_recorded_for(tmp_path):
    write_distribution(tmp_path, 'onedl_mmdetection', '3.5.1', 'mmdet/__init__.py,sha256=x,1\n')
    write_distribution(tmp_path, 'mmdet', '3.5.1', 'mm_transitional/__init__.py,,\n')
    write_distribution(tmp_path, 'mmsegmentation', '1.4.2', 'mmseg/transitional.txt,,\n')
    write_distribution(tmp_path, 'other', '1', 'other/mmdet/__init__.py,,\n')
    found = read(tmp_path)
    assert found['onedl-mmdetection'] == Distribution('onedl-mmdetection', '3.5.1', ('mmdet',))
    assert [found[name].owns for name in ('mmdet', 'mmsegmentation', 'other')] == [()] * 3


def test_first_of_two_distributions_of_one_name_counts(tmp_path):
    for folder, version in (('first', '1.0'), ('second', '2.0')):
        write_distribution(tmp_path / folder, 'mmdet', version)
    path = [str(tmp_path / 'first'), str(tmp_path / 'second')]
    (found,) = facts.read_distributions(metadata.distributions(path=path))
    assert found.version == '1.0'


def test_module_installed_in_place_belongs_to_its_folder(tmp_path):
    source = tmp_path / 'with space'
    (source / 'mmdet').mkdir(parents=True)
    (source / 'mmdet' / '__init__.py').touch()
    url = f'{{"dir_info": {{"editable": true}}, "url": "{source.as_uri()}"}}'
    write_distribution(tmp_path / 'site', 'mmdet', '3.3.0', direct_url_json=url)
    write_distribution(tmp_path / 'site', 'broken', '1', direct_url_json='{')
    found = read(tmp_path / 'site')
    assert found['mmdet'] == Distribution('mmdet', '3.3.0', ('mmdet',), str(source))
    assert found['broken'].owns == ()


def test_folder_without_init_file_does_not_count_as_a_module(tmp_path, monkeypatch):
    (tmp_path / 'left_over' / 'models').mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert facts.origin('left_over') == '' == facts.origin('never_heard_of')
    (tmp_path / 'left_over' / '__init__.py').touch()
    assert facts.origin('left_over') == str(tmp_path / 'left_over' / '__init__.py')


def test_gpu_is_seen_on_the_bus(tmp_path):
    def add(name, vendor, kind):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'vendor').write_text(f'{vendor}\n')
        (tmp_path / name / 'class').write_text(f'{kind}\n')

    assert not facts.has_gpu(tmp_path / 'nowhere')
    add('0', '0x10de', '0x040300')  # the sound of a graphics card
    add('1', '0x8086', '0x030000')  # another maker's
    assert not facts.has_gpu(tmp_path)
    add('2', '0x10de', '0x030200')
    assert facts.has_gpu(tmp_path)


@pytest.mark.parametrize(
    ('code', 'said'),
    [
        ('import os; os.abort()', 'crashes (signal 6)'),
        ('raise SystemExit("no licence")', 'no licence'),
        ('raise SystemExit(3)', 'ended with status 3'),
        ('print(\'{"import": null}\'); raise SystemExit(3)', None),
    ],
)
def test_probe_that_crashes_is_reported(tmp_path, monkeypatch, code, said):
    (tmp_path / 'probe.py').write_text(code)
    monkeypatch.setattr(facts, 'PROBE', tmp_path / 'probe.py')
    assert facts.run_probe('mmdet') == {'import': said}


def test_probe_that_hangs_is_reported(tmp_path, monkeypatch):
    (tmp_path / 'probe.py').write_text('import time; time.sleep(600)')
    monkeypatch.setattr(facts, 'PROBE', tmp_path / 'probe.py')
    monkeypatch.setattr(facts, 'PROBE_SECONDS', 0.2)
    assert facts.run_probe('mmdet') == {'import': 'no answer within 0.2 s'}


def test_probe_names_why_a_library_does_not_import(tmp_path, monkeypatch):
    (tmp_path / 'mmdet').mkdir()
    code = 'print("noise"); assert False, "MMCV==9 is incompatible"'
    (tmp_path / 'mmdet' / '__init__.py').write_text(code)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert facts.run_probe('mmdet') == {'import': 'AssertionError: MMCV==9 is incompatible'}


def test_nothing_is_probed_without_torch_but_opencv(monkeypatch):
    monkeypatch.setattr(facts, 'run_probe', lambda name: {'import': f'{name} fails'})
    there = dict.fromkeys(WATCHED, 'file')
    assert list(facts.run_probes({**there, 'torch': ''})) == ['cv2']
    assert list(facts.run_probes(there)) == ['torch', 'cv2']
    monkeypatch.setattr(facts, 'run_probe', lambda name: {'import': None})
    assert list(facts.run_probes({**there, 'mmseg': ''})) == [n for n in PROBED if n != 'mmseg']
