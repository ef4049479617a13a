"""What all tests share: DVC's commands run in children of one process that has imported DVC; settings."""

import gc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support import forking

# On a machine that is busy with something else an example may take any time.
settings.register_profile("busy", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays: no garbage is looked for meanwhile, and later on among what tests make alone."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For products so small that threads would wait for each other."""
    from benchmarks import threads

    with threads.one_thread():
        yield


@pytest.fixture(scope="session", autouse=True)
def dvc_without_its_imports() -> Iterator[None]:
    """Real DVC, without the second that each of its processes imports."""
    with forking.dvc_nursery():
        yield
