"""The real local stack, started once for all integration tests that ask for it; in which order and where tests run.

The Makefile has two processes run them. Both end at about the same time if what takes long comes first; the stack is
kept up only as long as a test to come may need it (idle, it takes a tenth of a core); and the two nights are made in
one process alone.
"""

import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from running import RunningStack
from workspaces import TwoNights, close_nurseries, two_nights
from xdist.scheduler import LoadFileScheduling

from vabal.adapters import stack as local_stack

# What nohup or a shell's & starts ignores Ctrl-C, and so would every command that the tests start, and stop by it.
signal.signal(signal.SIGINT, signal.default_int_handler)


# What takes minutes, the longest first.
LONGEST = (
    *("nights", "test_bench", "test_pages", "test_deploy", "test_many_machines"),
    *("test_learners_audited", "test_faults", "test_states", "test_outside", "test_core_alone"),
)
HERE = Path(__file__).parent

_stacks: list[RunningStack] = []  # what runs
_without: set[str] = set()  # tests after which nobody asks for the stack


class Together(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """A file's tests run in one process; so do all files that look at the two nights."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(Path(nodeid.split("::", 1)[0]).stem)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together | None:
    return Together(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that ask for the stack first, and of these what takes longest."""
    places = [place for place, item in enumerate(items) if item.path.parent == HERE]
    asking = {items[place].path for place in places if "running_stack" in _fixtures(items[place])}

    def order(item: pytest.Item) -> tuple[bool, int, str]:
        group = _group(item.path.stem)
        return item.path not in asking, LONGEST.index(group) if group in LONGEST else len(LONGEST), item.path.stem

    for place, item in zip(places, sorted((items[place] for place in places), key=order), strict=True):
        items[place] = item


@cache
def _group(name: str) -> str:
    file = HERE / f"{name}.py"
    return "nights" if file.is_file() and "nights: TwoNights" in file.read_text(encoding="utf-8") else name


def pytest_collection_finish(session: pytest.Session) -> None:
    asking = [place for place, item in enumerate(session.items) if "running_stack" in _fixtures(item)]
    _without.update(item.nodeid for item in session.items[max(asking, default=-1) + 1 :])


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.nodeid in _without:
        _end_stack()


def _fixtures(item: pytest.Item) -> list[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else []


def _end_stack() -> None:
    close_nurseries()
    while _stacks:
        local_stack.down(_stacks.pop().root)


@pytest.fixture(scope="session")
def running_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """S3, MLflow, Prefect and a worker: up once a session, down when the last test that asks for it has run."""
    root = tmp_path_factory.mktemp("stack")
    local_stack.up(root)
    _stacks.append(RunningStack(root))
    yield _stacks[0]
    _end_stack()


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
