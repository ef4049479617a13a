"""The workspace: found from anywhere inside it, held by one process at a time."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vabal.errors import UserError
from vabal.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "params.yaml").write_text("seed: 7\n")
    (tmp_path / ".dvc").mkdir()
    return Workspace(tmp_path)


def test_a_workspace_is_found_from_a_folder_deep_inside_it(workspace: Workspace) -> None:
    inside = workspace.root / "a" / "b"
    inside.mkdir(parents=True)
    assert Workspace.find(inside) == workspace == Workspace.find(workspace.root)


def test_the_current_folder_is_where_the_search_begins(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.root)
    assert Workspace.find() == workspace


@pytest.mark.parametrize("missing", ["params.yaml", ".dvc"])
def test_a_folder_that_lacks_either_mark_is_no_workspace(workspace: Workspace, missing: str) -> None:
    path = workspace.root / missing
    path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=r"is no workspace .*vabal init") as caught:
        Workspace.find(workspace.root)
    assert str(workspace.root) in str(caught.value)


def test_settings_are_read_with_their_overrides(workspace: Workspace) -> None:
    assert workspace.params().seed == 7
    assert workspace.params({"selection.strategy": "random"}).selection.strategy == "random"


def test_the_state_folder_is_made_for_its_owner_only(workspace: Workspace) -> None:
    assert stat.S_IMODE(workspace.state.stat().st_mode) == 0o700


def test_the_state_folder_and_what_lies_in_it_are_narrowed_where_they_were_open(workspace: Workspace) -> None:
    state = workspace.root / ".vabal"
    for folder in (state, state / "logs", state / "stages"):
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
    (state / "env").write_text("VABAL_TEST_NAME=1\n")
    (state / "env").chmod(0o644)
    (workspace.root / "outside").mkdir(mode=0o755)
    (state / "link").symlink_to(workspace.root / "outside")
    workspace.environment()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (state, *state.iterdir())}
    assert modes == {".vabal": 0o700, "logs": 0o700, "stages": 0o700, "env": 0o600, "link": 0o755}


def test_a_workspace_has_one_identity_and_another_workspace_another(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert workspace.identity == Workspace(workspace.root).identity != Workspace(tmp_path / "other").identity


def test_a_workspace_without_pools_says_how_to_make_them(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="make round 0 with `vabal init"):
        workspace.require_round_zero()


def test_a_clone_whose_pools_were_not_pulled_says_how_to_bring_them(workspace: Workspace) -> None:
    (workspace.root / "data.dvc").touch()
    with pytest.raises(UserError, match="vabal checkout"):
        workspace.require_round_zero()


def test_a_workspace_with_pools_is_ready(workspace: Workspace) -> None:
    workspace.data.mkdir()
    (workspace.data / "catalog.parquet").touch()
    workspace.require_round_zero()


# -- the environment --------------------------------------------------------------------------------------------


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    own: dict[str, str] = {"MLFLOW_TRACKING_URI": "http://set.already"}
    monkeypatch.setattr(os, "environ", own)
    return own


def test_addresses_of_the_local_stack_fill_in_what_is_not_set(workspace: Workspace, environ: dict[str, str]) -> None:
    lines = ["# local", "MLFLOW_TRACKING_URI=http://local", "AWS_ENDPOINT_URL = http://s3?a=b", "", "odd line"]
    (workspace.state / "env").write_text("\n".join(lines))
    workspace.environment()
    assert environ["MLFLOW_TRACKING_URI"] == "http://set.already"
    assert environ["AWS_ENDPOINT_URL"] == "http://s3?a=b"
    assert not any("local" in key or "odd" in key for key in environ)


def test_without_a_local_stack_only_the_tools_analytics_are_turned_off(
    workspace: Workspace, environ: dict[str, str]
) -> None:
    workspace.environment()
    added = {name for name in environ if not name.startswith(("MLFLOW_TRACKING", "PYTEST"))}
    assert added == {"DVC_NO_ANALYTICS", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"}


# -- the lock ---------------------------------------------------------------------------------------------------

HOLDER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from vabal.workspace import Workspace

    with Workspace(Path(sys.argv[1])).lock("vabal round"):
        print("held", flush=True)
        time.sleep(600)
    """
)


@pytest.fixture
def holder(workspace: Workspace) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", HOLDER, str(workspace.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_and_told_who_holds_the_workspace(
    workspace: Workspace, holder: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(UserError, match=rf"in use by vabal round \(process {holder.pid}\)"), workspace.lock("audit"):
        pytest.fail("two processes hold the workspace")


def test_the_lock_dies_with_its_process_however_it_dies(workspace: Workspace, holder: "subprocess.Popen[str]") -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with workspace.lock("audit"):
        pass


def test_a_refused_beginning_leaves_no_lock_and_one_that_waited_for_it_holds_a_new_one(tmp_path: Path) -> None:
    started = threading.Event()

    def refused() -> None:
        with pytest.raises(RuntimeError), Workspace(tmp_path).lock("vabal init"):
            started.set()
            time.sleep(0.3)
            raise RuntimeError

    first = threading.Thread(target=refused)
    first.start()
    assert started.wait(120)
    with Workspace(tmp_path).lock("vabal init", wait=120.0):
        with pytest.raises(UserError, match="in use by vabal init"), Workspace(tmp_path).lock("vabal init"):
            pass
        (tmp_path / "data").mkdir()
    first.join()
    with pytest.raises(RuntimeError), Workspace(tmp_path).lock("vabal round"):
        raise RuntimeError
    assert (tmp_path / ".vabal" / "lock").exists()


def test_whoever_holds_the_lock_clears_what_a_kill_left_half_written_at_the_top_and_nothing_else(
    workspace: Workspace,
) -> None:
    ours = [f".{name}.{'0f' * 16}.tmp" for name in ("promotions.jsonl", "data.dvc", "params.yaml", ".gitignore")]
    others = [".notes.tmp", f".notes.{'0f' * 16}.tmp", ".promotions.jsonl.tmp", f"promotions.jsonl.{'0f' * 16}.tmp"]
    for name in [*ours, *others]:
        (workspace.root / name).write_text("half")
    with workspace.lock("vabal promote"):
        assert {path.name for path in workspace.root.glob("*.tmp")} == set(others)


def test_waiting_for_the_lock_ends_when_its_holder_ends(workspace: Workspace, holder: "subprocess.Popen[str]") -> None:
    holder.terminate()
    with workspace.lock("audit", wait=120.0):
        assert holder.wait(timeout=120) != 0


def test_a_night_waits_for_a_promotion_and_not_for_another_night(
    workspace: Workspace, holder: "subprocess.Popen[str]"
) -> None:
    begun = time.monotonic()
    with (
        pytest.raises(UserError, match=rf"in use by vabal round \(process {holder.pid}\)"),
        workspace.lock("vabal round", wait=600.0, unless="vabal round"),
    ):
        pytest.fail("two nights hold the workspace")
    assert time.monotonic() - begun < 300
    (workspace.state / "lock").write_text(json.dumps({"pid": holder.pid, "purpose": "vabal promote"}))
    threading.Timer(1.0, holder.terminate).start()
    heard = list[str]()
    with workspace.lock("vabal round", wait=600.0, unless="vabal round", tell=heard.append):
        assert holder.wait(timeout=120) != 0
    assert heard == [f"waiting for vabal promote (process {holder.pid}) to end"]


def test_a_folder_that_is_not_there_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'lost'}: there is no such folder")):
        Workspace.find(tmp_path / "lost")


def test_the_lock_is_free_again_after_an_error_inside_it(workspace: Workspace) -> None:
    with pytest.raises(RuntimeError), workspace.lock("round"):
        raise RuntimeError
    with workspace.lock("round"):
        pass


def test_a_holder_that_left_no_name_is_still_refused_in_one_line(workspace: Workspace) -> None:
    with workspace.lock("round"):
        (workspace.state / "lock").write_text("")
        with pytest.raises(UserError, match="in use by another command"), workspace.lock("audit"):
            pytest.fail("held twice")


def test_what_vabal_env_sets_are_addresses_and_keys_alone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "LD_PRELOAD", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    (workspace.state / "env").write_text(
        "AWS_ENDPOINT_URL=http://127.0.0.1:9\nLD_PRELOAD=evil.so\nPYTHONPATH=evil\n#AWS_REGION=x\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        workspace.environment()
        assert os.environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9"
        assert not {"LD_PRELOAD", "PYTHONPATH", "#AWS_REGION"} & set(os.environ)


def test_an_env_file_that_came_with_a_clone_is_refused_and_the_message_helps(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=workspace.root, check=True, capture_output=True)

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    (workspace.state / "env").write_text("AWS_ENDPOINT_URL=http://elsewhere.example\n")
    git("init", "--quiet")
    git("add", "--force", ".vabal/env")
    with pytest.raises(UserError, match=r"versioned by git.*`git rm --cached \.vabal/env`"):
        workspace.environment()
    assert "AWS_ENDPOINT_URL" not in os.environ
    git("rm", "--cached", "--force", ".vabal/env")
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        workspace.environment()
