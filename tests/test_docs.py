"""What the docs show works: examples, links, pictures."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from mmengine.config import Config

import contnet_mm

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
PYTHON_BLOCKS = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)


def test_docstring_examples_give_what_they_say():
    names = [module.name for module in pkgutil.walk_packages(contnet_mm.__path__, 'contnet_mm.')]
    results = [doctest.testmod(importlib.import_module(name)) for name in names]
    assert sum(result.attempted for result in results) > 0
    assert not any(result.failed for result in results)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
        if not target.startswith('http'):
            assert (page.parent / target).exists(), target


def test_the_config_of_the_readme_builds_a_detector(tmp_path):
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    (tmp_path / 'my_config.py').write_text(PYTHON_BLOCKS[0])
    config = Config.fromfile(tmp_path / 'my_config.py')
    register_all_modules()
    model = MODELS.build(config.model)
    assert tuple(model.neck.in_channels) == model.backbone.out_channels
    with pytest.raises(FileNotFoundError, match='checkpoints/contnet-m_in1k.pth'):
        model.init_weights()


def test_the_python_example_of_the_readme_runs(capsys):
    exec(PYTHON_BLOCKS[1].replace('800, 1333', '80, 133'), {})
    assert '(64, 128, 256, 1024) (4, 8, 16, 32)' in capsys.readouterr().out
