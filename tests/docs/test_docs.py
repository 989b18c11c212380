"""What the docs show works: examples, links, pictures, commands of our tools."""

import doctest
import importlib
import pkgutil
import re
import runpy
import shlex

import pytest
from mmengine.config import Config

import contnet_mm
from contnet_mm.apis.config import find_config, read_config
from tests.helpers import ROOT

PAGES = [ROOT / 'README.md', ROOT / 'SECURITY.md', *ROOT.glob('docs/*.md')]
PAGES = sorted([*PAGES, *ROOT.glob('configs/*/README.md')])
LINKED = [*PAGES, ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md']
LINKED += [ROOT / 'tools' / 'transitional' / 'README.md']
PYTHON_BLOCKS = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)


def test_docstring_examples_give_what_they_say():
    names = [module.name for module in pkgutil.walk_packages(contnet_mm.__path__, 'contnet_mm.')]
    results = [doctest.testmod(importlib.import_module(name)) for name in names]
    assert sum(result.attempted for result in results) > 0
    assert not any(result.failed for result in results)


def tool_commands(text):
    """Yield the tools that a page runs, each with its words; a mention alone has none."""
    blocks = ''.join(re.findall(r'^```bash\n(.*?)^```', text, re.DOTALL | re.MULTILINE))
    lines = blocks.replace('\\\n', ' ').splitlines()
    lines += re.findall(r'`([^`]+)`', re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.M))
    for line in lines:
        match = re.match(
            r'(?:python tools/(\w+)\.py|(?:python -m|mim run) contnet_mm (\w+))(?=\s|$)(.*)',
            line,
            re.DOTALL,
        )
        # TOOL stands for any of them.
        if match and match[2] != 'TOOL':
            words = shlex.split(match[3], comments=True)
            yield match[1] or match[2], [word for word in words if word != '--']


COMMANDS = sorted({(t, *words) for page in PAGES for t, words in tool_commands(page.read_text())})


def test_pages_show_how_to_run_most_tools():
    tools = {path.stem for path in (ROOT / 'tools').glob('*.py')}
    shown = {tool for tool, *words in COMMANDS}
    assert shown <= tools and len(shown) >= 8


@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
def test_the_tool_takes_the_arguments_that_a_page_gives_it(command):
    tool, *words = command
    make_parser = runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'))['make_parser']
    if words:
        make_parser().parse_args(words)
    for before, word in zip(['', *words], words, strict=False):
        if '::' in word:
            read_config(word)
        elif word.endswith('.py') and before != '-o':  # what is still to be written
            find_config(word)
        elif word.startswith('configs/'):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize('page', LINKED, ids=lambda page: str(page.relative_to(ROOT)))
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
    assert '(128, 256, 512, 1024) (4, 8, 16, 32)' in capsys.readouterr().out
