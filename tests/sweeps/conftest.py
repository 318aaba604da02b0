"""Shared by the tests of sweeps: a Ray cluster."""

import pytest


@pytest.fixture(scope="session")
def cluster():
    """One cluster for all tests that need one: a start costs seconds."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
