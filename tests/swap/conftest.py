"""The backbones that are swapped need no weights of their own."""

import pytest

from tests.helpers import quick_weights


@pytest.fixture(scope='package', autouse=True)
def weights():
    with quick_weights():
        yield
