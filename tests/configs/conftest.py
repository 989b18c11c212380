"""Models of configs are built to see that they fit together."""

import pytest

from tests.helpers import quick_weights


@pytest.fixture(scope='package', autouse=True)
def weights():
    with quick_weights():
        yield
