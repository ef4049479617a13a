"""Where a task works: in the workspace, or, on a machine without it, in a scratch folder."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_buckets import s3_server, use_s3
from vabal import objects
from vabal.errors import UserError
from vabal.flows.context import context_of, scratch_place
from vabal.rounds import OpenRound
from vabal.rounds.context import own_store
from vabal.rounds.stage_store import code_version
from vabal.settings.params import parse


def _ticket(workspace: Path | None, **settings: Any) -> dict[str, Any]:
    begun = OpenRound(1, "0" * 64, (), datetime(2026, 1, 1, tzinfo=UTC).isoformat())
    params = parse({"classifier": {"learner": "scratch"}, **settings}).model_dump(mode="json")
    folder = None if workspace is None else str(workspace)
    return {
        "workspace": folder,
        "params": params,
        "round": begun.to_json(),
        "intake": "0" * 16,
        "weights": None,
        "code": code_version(),
    }


def test_a_task_on_a_machine_without_the_workspace_keeps_all_in_its_scratch_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VABAL_SCRATCH", str(tmp_path / "scratch"))
    with s3_server() as address:
        use_s3(monkeypatch, address)
        ticket = _ticket(None, stages="s3://nights/team", compute={"objects_gigabytes": 3.0})
        context = context_of(ticket)
        assert context.workspace.root == tmp_path / "scratch"
        assert context.shared is not None
        with pytest.raises(UserError, match=r"^the intake of round 1 is gone from the stage store: run it again$"):
            _ = context.report
    kept = objects._kept
    assert kept is not None
    assert (kept.folder, kept._gigabytes()) == (tmp_path / "scratch" / ".vabal" / "objects", 3.0)
    assert (tmp_path / "scratch").stat().st_mode & 0o777 == 0o700


def test_a_worker_of_another_version_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VABAL_SCRATCH", str(tmp_path))
    ticket = _ticket(None, stages="s3://nights/team") | {"code": "0.1.0+000000000000"}
    with pytest.raises(UserError, match=r"^this worker \(\S+\) runs vabal \S+, the night runs 0\.1\.0\+0+: [^\n]*$"):
        context_of(ticket)


def test_a_task_beside_the_workspace_works_in_it(tmp_path: Path) -> None:
    context = context_of(_ticket(tmp_path))
    assert context.workspace.root == tmp_path
    assert context.local.get("intake", "0" * 16) is None
    assert context.stages.shared is None
    assert own_store(context.workspace).folder == tmp_path / ".vabal" / "stages"


def test_without_a_variable_scratch_lies_in_the_user_s_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VABAL_SCRATCH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert scratch_place().root == tmp_path / "caches" / "vabal"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert scratch_place().root == tmp_path / ".cache" / "vabal"
