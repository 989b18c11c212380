"""Metafiles, the pages of each folder and the files on disk say the same."""

import re

import pytest
import yaml
from mmengine.config import Config

from tests.helpers import ROOT

FOLDERS = sorted(
    path for path in (ROOT / 'configs').iterdir() if path.is_dir() and path.name != '_base_'
)
TASKS = dict(
    mmdet={'Object Detection', 'Instance Segmentation'},
    mmseg={'Semantic Segmentation'},
    mmpretrain={'Image Classification'},
)
each_folder = pytest.mark.parametrize('folder', FOLDERS, ids=lambda path: path.name)


def read_yaml(path):
    return yaml.safe_load(path.read_text())


def metric_rows(page):
    """Yield the rows of tables that link a config, as dicts from heading to cell."""
    heading = None
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if not line.startswith('|'):
            heading = None
        elif heading is None:
            heading = cells
        elif 'config' in heading and (link := re.search(r'\]\(\./(.+)\.py\)', line)):
            yield link[1], dict(zip(heading, cells, strict=True))


@each_folder
def test_the_metafile_lists_each_config_once(folder):
    models = read_yaml(folder / 'metafile.yml')['Models']
    assert sorted(model['Name'] for model in models) == sorted(p.stem for p in folder.glob('*.py'))
    for model in models:
        assert model['Config'] == f'configs/{folder.name}/{model["Name"]}.py'


@each_folder
def test_the_metafile_agrees_with_the_configs(folder):
    content = read_yaml(folder / 'metafile.yml')
    collections = {collection['Name']: collection for collection in content['Collections']}
    for collection in collections.values():
        assert collection['README'] == f'configs/{folder.name}/README.md'
    for model in content['Models']:
        assert model['In Collection'] in collections
        config = Config.fromfile(ROOT / model['Config'])
        train = config.train_cfg
        length = {'Epochs': train.get('max_epochs'), 'Iterations': train.get('max_iters')}
        given = {key: model['Metadata'][key] for key in length if key in model['Metadata']}
        assert given == {key: value for key, value in length.items() if value}
        assert {result['Task'] for result in model['Results']} <= TASKS[config.default_scope]
        assert all(result['Dataset'] for result in model['Results'])


@each_folder
def test_the_page_has_a_row_for_each_config_and_keeps_published_apart(folder):
    rows = list(metric_rows(folder / 'README.md'))
    assert sorted(name for name, _ in rows) == sorted(path.stem for path in folder.glob('*.py'))
    for _, row in rows:
        assert [heading for heading in row if 'measured here' in heading] == ['measured here']


@each_folder
def test_metrics_of_the_metafile_are_those_measured_on_the_page(folder):
    rows = dict(metric_rows(folder / 'README.md'))
    for model in read_yaml(folder / 'metafile.yml')['Models']:
        metrics = [
            value for result in model['Results'] for value in result.get('Metrics', {}).values()
        ]
        measured = ' '.join(
            cell for heading, cell in rows[model['Name']].items() if 'measured here' in heading
        )
        assert sorted(map(float, re.findall(r'\d+\.\d+', measured))) == sorted(metrics)


def test_the_index_imports_each_metafile():
    paths = read_yaml(ROOT / 'model-index.yml')['Import']
    assert paths == [f'configs/{folder.name}/metafile.yml' for folder in FOLDERS]


# Tables of the official README, by the start of a config's name and what must not be in it.
BOX = ('published box AP', 'published box AP s / m / l')
MASK = ('published mask AP', 'published mask AP s / m / l')
PUBLISHED = {
    'retinanet/retinanet_r50_fpn_1x': dict(zip(BOX, ('36.5', '20.4 / 40.3 / 48.1'), strict=True)),
    'retinanet/retinanet_contnet-m_fpn_1x': dict(
        zip(BOX, ('37.9', '23.0 / 40.6 / 50.4'), strict=True)
    ),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x': dict(
        zip(BOX, ('36.6', '21.0 / 40.6 / 47.0'), strict=True)
    ),
    'fcos/fcos_contnet-m_fpn_gn-head_1x': dict(
        zip(BOX, ('39.3', '23.1 / 43.1 / 51.9'), strict=True)
    ),
    'fcos/fcos_r50-caffe_fpn_gn-head-center': {BOX[0]: '38.7', BOX[1]: ''},
    'fcos/fcos_contnet-m_fpn_gn-head-center': {BOX[0]: '40.8', BOX[1]: ''},
    'faster_rcnn/faster-rcnn_r50_fpn_1x': dict(
        zip(BOX, ('37.4', '21.2 / 41.0 / 48.1'), strict=True)
    ),
    'faster_rcnn/faster-rcnn_contnet-m_fpn_1x': dict(
        zip(BOX, ('40.0', '25.4 / 43.0 / 52.0'), strict=True)
    ),
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco': dict(
        zip(
            BOX + MASK,
            ('38.2', '21.9 / 40.9 / 49.5', '34.7', '18.3 / 37.4 / 47.2'),
            strict=True,
        )
    ),
    'mask_rcnn/mask-rcnn_contnet-m_fpn_1x_coco': dict(
        zip(
            BOX + MASK,
            ('40.5', '25.1 / 44.4 / 52.7', '38.1', '20.9 / 41.0 / 50.3'),
            strict=True,
        )
    ),
    'mask_rcnn/mask-rcnn_contnet-m_fpn_1x_cityscapes': dict.fromkeys(BOX + MASK, ''),
    'pspnet/pspnet_r50-d8_4xb2-80k': {'published mIoU': '77.12'},
    'pspnet/pspnet_contnet-m-d8_4xb2-80k': {'published mIoU': '78.28'},
    'contnet/contnet-s_8xb32_in1k': {'published top-1 (%)': '74.9'},
    'contnet/contnet-m_8xb32_in1k': {'published top-1 (%)': '77.6'},
    'contnet/contnet-b_8xb32_in1k': {'published top-1 (%)': '77.9'},
    'contnet/contnet-ti_8xb64-strong': {'published top-1 (%)': '74.9'},
    'contnet/contnet-s_8xb64-strong': {'published top-1 (%)': '76.5'},
    'contnet/contnet-m_8xb64-strong': {'published top-1 (%)': '80.2'},
    'contnet/contnet-b_8xb64-strong': {'published top-1 (%)': '81.8'},
}


@pytest.mark.parametrize('start', PUBLISHED)
def test_published_values_are_those_of_the_paper(start):
    folder, _, name = start.partition('/')
    rows = dict(metric_rows(ROOT / 'configs' / folder / 'README.md'))
    [row] = [row for config, row in rows.items() if config.startswith(name)]
    assert {key: row[key] for key in PUBLISHED[start]} == PUBLISHED[start]


def test_mim_search_reads_the_model_index():
    modelindex = pytest.importorskip('modelindex.load_model_index')
    search = pytest.importorskip('mim.commands.search')
    table = search.convert2df(modelindex.load(str(ROOT / 'model-index.yml')))
    assert 'retinanet_contnet-m_fpn_1x_coco' in table.index
