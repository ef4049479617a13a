"""A night that begins while another command holds the workspace."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from vabal.errors import UserError
from vabal.flows import round as night
from vabal.workspace import Workspace


@contextmanager
def held(place: Workspace, purpose: str, until: threading.Event) -> Iterator[None]:
    """Another thread has the lock until the event, or the end of this."""
    taken = threading.Event()

    def hold() -> None:
        with place.lock(purpose):
            taken.set()
            until.wait(300)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert taken.wait(60)
        yield
    finally:
        until.set()
        holder.join()


@pytest.mark.parametrize(
    ("purpose", "outcome", "heard"),
    [("vabal promote", "no S3 keys", "waiting for vabal promote"), ("vabal round", "in use by vabal round", "")],
)
def test_a_night_waits_for_a_promotion_and_another_night_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, purpose: str, outcome: str, heard: str
) -> None:
    """With the workspace to itself it asks the servers, whose keys are not there."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "params.yaml").write_text("workspace:\n  name: held\n")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    waits, lines = threading.Event(), list[str]()

    def hear(line: str) -> None:
        lines.append(line)
        waits.set()

    monkeypatch.setattr(night, "get_run_logger", lambda: SimpleNamespace(info=hear))
    with held(Workspace(tmp_path), purpose, waits), pytest.raises(UserError, match=outcome):
        night.active_learning_round.fn(str(tmp_path))
    assert [line[: len(heard)] for line in lines] == [heard] * bool(heard)
