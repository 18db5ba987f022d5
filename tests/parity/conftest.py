"""The first system compared does not pay for importing the libraries."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def warm_libraries():
    import timm  # noqa: F401
