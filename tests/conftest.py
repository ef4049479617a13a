"""What all tests share: DVC's commands run in children of one process that has imported DVC."""

from collections.abc import Iterator

import pytest

from tests.support import forking


@pytest.fixture(scope="session", autouse=True)
def dvc_without_its_imports() -> Iterator[None]:
    """Real DVC, without the second that each of its processes imports."""
    with forking.dvc_nursery():
        yield
