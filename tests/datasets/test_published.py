"""What is expected of the published data sets and of the demo data, and how it is fixed."""

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from contnet_mm.datasets.check import parts_of_folder
from contnet_mm.datasets.check.fixes import find_demo, published_fix
from contnet_mm.datasets.demo import DemoOptions
from tests.datasets.helpers import OPTIONS, faults, names_of
from tests.helpers import ROOT


@pytest.mark.parametrize('kind', ['coco', 'cityscapes', 'imagenet'])
def test_good_data_passes(demo, kind):
    assert faults(parts_of_folder(kind, demo / kind), all_images=True) == []


def test_hidden_files_of_other_programs_are_passed_over(demo):
    for folder in ('coco/train', 'cityscapes/gtFine/val', 'imagenet/val/1'):
        (demo / folder / '._1.png').write_bytes(b'')
        (demo / folder / '._1_gtFine_labelTrainIds.png').write_bytes(b'')
    for kind in ('coco', 'cityscapes', 'imagenet'):
        assert faults(parts_of_folder(kind, demo / kind)) == []


def test_published_data_is_expected_under_its_names_and_counts(tmp_path):
    counts = {
        kind: {part.name: part.num_images for part in parts_of_folder(kind, tmp_path)}
        for kind in ('coco', 'cityscapes', 'imagenet')
    }
    assert counts == {
        'coco': {'train2017': 118287, 'val2017': 5000},
        'cityscapes': {
            'train (semantic)': 2975,
            'train (instances)': 2975,
            'val (semantic)': 500,
            'val (instances)': 500,
        },
        'imagenet': {'train': 1281167, 'val': 50000},
    }
    assert [len(parts_of_folder('coco', tmp_path)[0].classes)] == [80]
    issues = faults(parts_of_folder('coco', tmp_path))
    command = f'unzip -qo {tmp_path}/train2017.zip -d {tmp_path}'
    assert command in [issue.fix for issue in issues]


def test_the_page_on_data_unpacks_what_the_check_says():
    page = (ROOT / 'docs' / 'data.md').read_text()
    loops = re.findall(r'^for name in .* unzip .*; done$', page, re.MULTILINE)
    script = '\n'.join(['unzip() { echo unzip "$@"; }', *loops])
    result = subprocess.run(['bash', '-c', script], check=True, capture_output=True, text=True)
    coco = [published_fix('coco', Path('data/coco'), name) for name in ('train2017', 'val2017')]
    cityscapes = published_fix('cityscapes', Path('data/cityscapes'), 'val')
    commands = [coco[0].images, coco[1].images, coco[0].annotations]
    assert result.stdout.splitlines() == [*commands, cityscapes.images, cityscapes.ground_truth]
    assert f'\n{cityscapes.labels}\n' in page and f'fix: {commands[0]}\n' in page


def test_a_wrong_number_of_published_images_is_found(demo):
    (demo / 'settings.json').unlink()
    issues = faults(parts_of_folder('cityscapes', demo / 'cityscapes'))
    assert names_of(issues) == {'count'} and len(issues) == 4
    assert any('6 images' in issue.what and '2975' in issue.what for issue in issues)


def test_a_converted_file_in_the_wrong_folder_is_moved_by_the_command_named(demo):
    root = demo / 'cityscapes'
    (root / 'annotations/instancesonly_filtered_gtFine_val.json').rename(
        root / 'instancesonly_filtered_gtFine_val.json'
    )
    (issue,) = faults(parts_of_folder('cityscapes', root))
    assert ' && mv ' in issue.fix
    subprocess.run(['bash', '-c', issue.fix], check=True)
    assert faults(parts_of_folder('cityscapes', root)) == []


def test_the_command_for_the_demo_makes_it_with_its_settings(demo):
    command = find_demo(demo / 'coco')[0].images
    start, arguments = command.split(' make_demo_data ')
    assert start == 'python -m contnet_mm'
    parse = runpy.run_path(str(ROOT / 'tools/make_demo_data.py'))['make_parser']().parse_args
    args = vars(parse(shlex.split(arguments)))
    assert args.pop('out') == demo and args.pop('overwrite')
    assert DemoOptions(**args) == OPTIONS


def test_the_index_for_mim_names_the_three_data_sets():
    index = yaml.safe_load((ROOT / 'dataset-index.yml').read_text())
    # What both versions of `mim download` read without asking.
    assert index.pop('openxlab') is True
    assert index.keys() == {'coco2017', 'cityscapes', 'imagenet1k'}
    for entry in index.values():
        assert entry['dataset'].startswith('OpenDataLab/') and entry['download_root'] == 'data'
