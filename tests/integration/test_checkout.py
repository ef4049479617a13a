"""A past round's pools, and the way back, with real git and DVC and a folder as the remote."""

import os
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest
from workspaces import call, done

from tests.support.repositories import git
from tests.support.small_manifests import manifest as small_manifest
from vabal.adapters.versioning import Versioning
from vabal.files import canonical_json, write_bytes

GIT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}


@pytest.fixture
def workspace(two_rounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two rounds, each with a manifest and a table of its own; the remote is shared, and only read."""
    for name, value in GIT.items():
        monkeypatch.setenv(name, value)
    return Path(shutil.copytree(two_rounds, tmp_path / "work", symlinks=True))


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    with mock.patch.dict(os.environ, GIT):
        return make(folder / "work", folder / "remote")


def make(root: Path, remote: Path) -> Path:
    root.mkdir()
    (root / "params.yaml").write_text("seed: 0\n")
    versions = Versioning(root)
    versions.init(str(remote))
    versions.commit(["params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"], "workspace")
    for number in range(2):
        write_bytes(root / "data" / "labeled.parquet", f"labels of round {number}".encode())
        write_bytes(
            root / "data" / "rounds" / f"{number:04d}" / "manifest.json", canonical_json(small_manifest(number))
        )
        versions.add()
        versions.push()
        versions.commit(["data.dvc"], f"round {number}")
        versions.tag(f"round/{number:04d}", f"round {number}")
    return root


def labels(root: Path) -> str:
    return (root / "data" / "labeled.parquet").read_text()


def test_an_older_checkout_asks_nobody_for_labels(workspace: Path) -> None:
    done(call(workspace, "checkout", "0"))
    (workspace / "data" / "catalog.parquet").touch()
    refused = call(workspace, "labels", "export", "asked")
    assert refused.code == 1
    assert "is a checkout of round 0, the newest is round 1: `vabal checkout newest`" in refused.err
    assert not (workspace / "asked").exists()


def test_a_past_round_comes_back_and_newest_leads_home_to_the_branch(workspace: Path) -> None:
    said = done(call(workspace, "checkout", "0"))
    assert labels(workspace) == "labels of round 0"
    assert not (workspace / "data" / "rounds" / "0001").exists()
    assert said.out == "data/ is as round 0 left it; `vabal checkout newest` goes back to the newest round\n"

    said = done(call(workspace, "checkout", "newest"))
    assert labels(workspace) == "labels of round 1"
    assert git(workspace, "branch", "--show-current") == "main"
    assert said.out == "data/ is as this commit pins it: round 1\n"


def test_a_clone_that_has_only_git_brings_the_pools_from_the_remote(workspace: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(workspace), "clone")
    done(call(tmp_path / "clone", "checkout"))
    assert labels(tmp_path / "clone") == "labels of round 1"
    done(call(tmp_path / "clone", "checkout", "0"))
    assert labels(tmp_path / "clone") == "labels of round 0"


def test_what_was_edited_by_hand_is_overwritten_only_when_that_is_asked_for(workspace: Path) -> None:
    (workspace / "data" / "labeled.parquet").write_text("mine")
    for arguments in (["checkout"], ["checkout", "0"], ["checkout", "newest"]):
        said = call(workspace, *arguments)
        assert said.code == 1
        assert said.err.startswith("vabal: data/ was edited by hand: data/labeled.parquet; --force overwrites that")
        assert labels(workspace) == "mine"
        assert git(workspace, "branch", "--show-current") == "main"
    done(call(workspace, "checkout", "--force"))
    assert labels(workspace) == "labels of round 1"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("7", "git has no tag round/0007: the newest round here is 1 (`git fetch --tags` brings others)"),
        ("one", "'one' is no round: give its number, or `newest`"),
    ],
)
def test_a_round_that_is_not_there_is_one_line_and_nothing_moves(workspace: Path, wanted: str, message: str) -> None:
    said = call(workspace, "checkout", wanted)
    assert (said.code, said.err) == (1, f"vabal: {message}\n")
    assert labels(workspace) == "labels of round 1"


def test_a_pending_publication_is_named_with_its_two_ways_out(workspace: Path) -> None:
    plan = {"round": 2, "message": "round 2", "files": {}}
    write_bytes(workspace / ".vabal" / "publish" / "plan.json", canonical_json(plan))
    said = call(workspace, "checkout", "--force")
    assert said.code == 1
    assert "round 2 is half published" in said.err
    assert "`vabal round` finishes it, `vabal abandon` drops it" in said.err


def test_git_acts_on_the_workspace_alone_whatever_a_hook_left_in_the_environment(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    for name, value in {
        "GIT_DIR": str(other / ".git"),
        "GIT_WORK_TREE": str(other),
        "GIT_INDEX_FILE": str(other / "index"),
        "GIT_OBJECT_DIRECTORY": str(other / ".git" / "objects"),
        "GIT_NAMESPACE": "elsewhere",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.bare",
        "GIT_CONFIG_VALUE_0": "true",
    }.items():
        monkeypatch.setenv(name, value)
    versions = Versioning(workspace)
    assert versions.tags() == ["round/0000", "round/0001"]
    (workspace / "params.yaml").write_text("seed: 1\n")
    assert versions.commit(["params.yaml"], "seed")
    assert not (other / "index").exists()
    assert not any((other / ".git" / "objects").glob("??"))


@pytest.mark.parametrize("remote", ["ext::sh -c touch% owned", "--upload-pack=touch owned", "-o", "fd::7", "a\nb"])
def test_a_git_remote_that_would_run_a_command_is_refused(workspace: Path, remote: str) -> None:
    from vabal.errors import UserError

    versions = Versioning(workspace)
    for use in (lambda: versions.push_git(remote, ["round/0001"]), lambda: versions.remote_tags(remote)):
        with pytest.raises(UserError, match=r"storage\.git_remote: .* is no name or address of a git remote"):
            use()
    assert not (workspace / "owned").exists()


def test_a_shell_gets_what_dvc_and_the_clients_need(workspace: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DVC_"))}
    (workspace / ".vabal" / "env").write_text("AWS_ENDPOINT_URL=http://127.0.0.1:9\nAWS_SECRET_ACCESS_KEY=a b'c\n")
    said = done(call(workspace, "env"))
    shell = subprocess.run(
        ["sh", "-c", 'eval "$1"; printf "%s|%s" "$AWS_ENDPOINT_URL" "$AWS_SECRET_ACCESS_KEY"', "sh", said.out],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout == "http://127.0.0.1:9|a b'c"


def test_bare_dvc_keeps_its_cache_in_the_workspace_for_its_owner_only(workspace: Path) -> None:
    for root in (workspace, workspace.with_name("moved")):
        if root != workspace:
            workspace.rename(root)
        shutil.rmtree(root / ".vabal" / "dvc")
        done(call(root, "env"))
        assert f"site_cache_dir = {root}/.vabal/dvc\n" in (root / ".dvc" / "config.local").read_text()
        assert (root / ".vabal" / "dvc").stat().st_mode & 0o777 == 0o700
