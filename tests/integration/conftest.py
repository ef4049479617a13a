"""The real local stack, started once for all integration tests that ask for it."""

import os
import signal
from collections.abc import Iterator

import pytest
from running import RunningStack
from workspaces import TwoNights, close_nurseries, two_nights

from vabal.adapters import stack as local_stack

# What nohup or a shell's & starts ignores Ctrl-C, and so would every command that the tests start, and stop by it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def running_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """S3, MLflow, Prefect and a worker: up once a session, down at its end."""
    root = tmp_path_factory.mktemp("stack")
    local_stack.up(root)
    yield RunningStack(root)
    close_nurseries()
    local_stack.down(root)


@pytest.fixture
def stack(running_stack: RunningStack, monkeypatch: pytest.MonkeyPatch) -> RunningStack:
    """The running stack, with its addresses and keys in this test's environment, as a command of the user has them."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    for name, value in running_stack.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.setenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    return running_stack


@pytest.fixture
def mlflow_uri(stack: RunningStack) -> str:
    return stack.environment["MLFLOW_TRACKING_URI"]


@pytest.fixture(scope="session")
def nights(running_stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> TwoNights:
    """A workspace after two rounds, made once a session: look at it, and copy it before changing anything."""
    return two_nights(running_stack, tmp_path_factory.mktemp("nights") / "nights")
