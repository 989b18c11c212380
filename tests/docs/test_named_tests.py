"""Pages name tests that hold what they say: these exist."""

import ast
import re

import pytest

from tests.helpers import ROOT

PAGES = {'SECURITY.md': 15}  # and how many tests they name at least


def defined_in(path):
    """Return the names of the test functions of a file."""
    tree = ast.parse(path.read_bytes())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize('page', PAGES)
def test_tests_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding='utf-8')
    found = re.findall(r'`(tests/[\w/]+\.py)::(test_\w+)`', text)
    assert len(found) == text.count('.py::')  # none is spelt otherwise
    named = set(found)
    assert len(named) >= PAGES[page]
    lost = {f'{file}::{name}' for file, name in named if name not in defined_in(ROOT / file)}
    assert not lost
