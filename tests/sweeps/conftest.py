"""Shared by the tests of sweeps: a Ray cluster."""

import pytest

from tests.sweeps.fakes import small_cluster


@pytest.fixture(scope="session")
def cluster():
    """One cluster for all tests that need one."""
    with small_cluster():
        yield
