"""Pages name tests that hold what they say: these exist."""

import ast
import re

import pytest

from tests.helpers import ROOT

PAGES = {'SECURITY.md': 15, 'docs/reliability.md': 40}  # and how many tests they name at least


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


def test_the_page_counts_the_claims_that_it_lists():
    text = (ROOT / 'docs/reliability.md').read_text(encoding='utf-8')
    table = text.partition('| claim | of | held by |\n')[2].partition('\n\n')[0]
    rows = [line for line in table.splitlines()[1:] if not line.startswith('| **')]
    apart = table.partition('| **Does not apply**')[2].splitlines()[1:]
    new = set(re.findall(r'::(test_\w+)` \(new\)', table))
    counts = f'| {len(rows)} | {len(rows) - len(apart)} | {len(new)} |'
    assert counts in text and f'{len(apart)} claims that do not apply' in text, counts
