"""Metafiles, the pages of each folder and the files on disk say the same."""

import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from contnet_mm.apis.complexity import find_published
from contnet_mm.doctor.facts import origin
from contnet_mm.reproduce.rows import METRICS, TOLERANCES
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
        metrics = {}
        for result in model['Results']:
            metrics |= result.get('Metrics', {})
        # The page shows those that count, with their spread over seeds.
        spread = model.get('Measured', {}).get('Spread', {})
        expected = [
            f'{metrics[name]:.{METRICS[name][2]}f}'
            + (f' ± {spread[name]:.{METRICS[name][2]}f}' if name in spread else '')
            for name in TOLERANCES
            if name in metrics
        ]
        measured = ' '.join(
            cell for heading, cell in rows[model['Name']].items() if 'measured here' in heading
        )
        assert re.findall(r'\d+\.\d+(?: ± \d+\.\d+)?', measured) == expected


def test_the_page_of_own_data_shows_what_the_metafile_of_bccd_holds():
    names = [f'box AP{part}' for part in ('', '50', ' Platelets', ' RBC', ' WBC')]
    lines = (ROOT / 'docs' / 'own_data.md').read_text().splitlines()
    for model in read_yaml(ROOT / 'configs' / 'bccd' / 'metafile.yml')['Models']:
        metrics = model['Results'][0].get('Metrics', {})
        spread = model.get('Measured', {}).get('Spread', {})
        expected = [
            f'{metrics[name]:.1f}' + (f' ± {spread[name]:.1f}' if name in spread else '')
            if metrics
            else ''
            for name in names
        ]
        (line,) = (line for line in lines if f'/{model["Name"]}.py)' in line)
        assert [cell.strip() for cell in line.strip('|').split('|')][3:] == expected


def test_the_index_imports_each_metafile():
    paths = read_yaml(ROOT / 'model-index.yml')['Import']
    assert paths == [f'configs/{folder.name}/metafile.yml' for folder in FOLDERS]


SEED = read_yaml(ROOT / 'tests' / 'configs' / 'seed_tables.yml')
SEED_ROWS = [(table, row) for table, rows in SEED.items() for row in rows]
SIZES = ('s', 'm', 'l')
# Headings of published values, and what seed_tables.yml calls the values below them.
HEADINGS = {
    'published top-1 (%)': ['Top 1 Accuracy'],
    'published box AP': ['box AP'],
    'published box AP s / m / l': [f'box AP {size}' for size in SIZES],
    'published mask AP': ['mask AP'],
    'published mask AP s / m / l': [f'mask AP {size}' for size in SIZES],
    'published mIoU': ['mIoU'],
}


def entries():
    """Yield the entries of all metafiles, each with its folder."""
    for folder in FOLDERS:
        for model in read_yaml(folder / 'metafile.yml')['Models']:
            yield folder, model


def published_cells(values):
    """Return what a page shows of a row's values, by heading."""
    return {
        heading: ' / '.join(str(values[key]) for key in keys)
        for heading, keys in HEADINGS.items()
        if keys[0] in values
    }


@pytest.mark.parametrize('row', SEED_ROWS, ids=': '.join)
def test_each_published_row_belongs_to_one_config(row):
    named = [
        (folder, model)
        for folder, model in entries()
        if (said := model.get('Published')) and (said['Table'], said['Row']) == row
    ]
    assert len(named) == 1, [model['Name'] for _, model in named]
    folder, model = named[0]
    values = SEED[row[0]][row[1]]
    assert model['Published'] == {'Table': row[0], 'Row': row[1], **values}
    network = re.search('(ti|s|m|b|18|50|101)[*]?$', row[1].lower())[1]
    assert re.search(f'(t-|r|resnet){network}', model['Name'])
    assert row[1].endswith('*') == bool(re.search('strong|deit', model['Name']))
    on_page = dict(metric_rows(folder / 'README.md'))[model['Name']]
    cells = published_cells(values)
    assert {heading: on_page[heading] for heading in cells} == cells
    if 'FLOPs (G)' in values:
        assert find_published(model['Config']) == (values['Parameters (M)'], values['FLOPs (G)'])


def test_values_of_mmpretrain_are_those_of_its_model_zoo():
    zoo = Path(origin('mmpretrain')).parent / '.mim' / 'configs'
    known = {
        # Ours trains DeiT's batch on twice as many GPUs.
        model['Name'].replace('_4xb256_', '_8xb128_'): model['Results'][0]['Metrics'][
            'Top 1 Accuracy'
        ]
        for family in ('resnet', 'deit')
        for model in read_yaml(zoo / family / 'metafile.yml')['Models']
        if '_8xb32_in1k' in model['Name'] or model['Name'].startswith('deit')
    }
    rows = dict(metric_rows(ROOT / 'configs' / 'contnet' / 'README.md'))
    shown = {name: row["MMPretrain's own top-1 (%)"] for name, row in rows.items()}
    shown = {name: float(cell) for name, cell in shown.items() if cell}
    assert len(shown) == 6 and shown.items() <= known.items()


@each_folder
def test_pages_and_metafiles_call_the_same_published(folder):
    published = {
        model['Name']: published_cells(model.get('Published', {}))
        for model in read_yaml(folder / 'metafile.yml')['Models']
    }
    for name, row in metric_rows(folder / 'README.md'):
        said = {heading: cell for heading, cell in row.items() if heading in HEADINGS and cell}
        assert said == published[name], name


def test_the_readme_shows_the_published_targets():
    text = (ROOT / 'README.md').read_text()
    shown = {
        link[1]: [cell.strip() for cell in line.strip('| ').split('|')][-2:]
        for line in text.splitlines()
        if (link := re.search(r'^\|.*\(configs/(\w+)/README.md\)', line))
    }
    coco, mask, city = SEED['COCO'], SEED['Mask R-CNN'], SEED['Cityscapes']
    later = SEED['COCO, later']
    for i, net in enumerate(('Res-50', 'ConT-M')):
        assert shown['retinanet'][i] == str(coco[f'RetinaNet {net}']['box AP'])
        fcos = (table[f'FCOS {net}']['box AP'] for table in (coco, later))
        assert shown['fcos'][i] == ' / '.join(map(str, fcos))
        assert shown['faster_rcnn'][i] == str(coco[f'Faster R-CNN {net}']['box AP'])
        assert shown['mask_rcnn'][i] == f'{mask[net]["box AP"]} / {mask[net]["mask AP"]}'
        assert shown['pspnet'][i] == str(city[('PSP-Res50', 'PSP-ConTM')[i]]['mIoU'])
        plain, strong = (SEED['ImageNet'][net + star]['Top 1 Accuracy'] for star in ('', '*'))
        assert shown['contnet'][i] == f'{plain} / {strong}'


def test_mim_search_reads_the_model_index():
    modelindex = pytest.importorskip('modelindex.load_model_index')
    search = pytest.importorskip('mim.commands.search')
    table = search.convert2df(modelindex.load(str(ROOT / 'model-index.yml')))
    assert 'retinanet_contnet-m_fpn_1x_coco' in table.index
