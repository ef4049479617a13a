"""Whether `data/` holds the newest round, asked of real git and a real remote."""

import shlex
import subprocess
from pathlib import Path

import pytest

from vabal import rounds
from vabal.adapters.versioning import Versioning
from vabal.errors import Unavailable, UserError
from vabal.workspace import Workspace


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def add_round(root: Path, number: int) -> None:
    """A round as far as git and `data/` show it."""
    folder = rounds.round_folder(root / "data", number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text("{}")
    (root / "data.dvc").write_text(f"round {number}\n")
    versions = Versioning(root)
    versions.commit(["data.dvc"], f"round {number}")
    versions.tag(rounds.tag_name(number), f"round {number}")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rounds 0 and 1, pushed to `remote.git`."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    (tmp_path / "gitconfig").write_text("[user]\n name = Ada\n email = ada@example.org\n[pull]\n ff = only\n")
    root = tmp_path / "work"
    root.mkdir()
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "remote.git")
    git(root, "init", "-q", "-b", "main")
    (root / ".gitignore").write_text("/data\n/.vabal\n")
    Versioning(root).commit([".gitignore"], "start")
    for number in range(2):
        add_round(root, number)
    Versioning(root).push_git(str(tmp_path / "remote.git"), ["round/0000", "round/0001"])
    return root


def ask(root: Path, git_remote: str | None = None) -> None:
    rounds.require_newest(Workspace(root), Versioning(root), git_remote)


def test_the_newest_round_on_its_branch_is_fine_with_and_without_a_remote(root: Path) -> None:
    ask(root)
    ask(root, str(root.parent / "remote.git"))


def test_a_round_whose_tag_is_still_missing_is_the_newest(root: Path) -> None:
    git(root, "tag", "--delete", "round/0001")
    ask(root)


def test_a_checkout_of_an_older_round_is_refused_in_one_line(root: Path) -> None:
    git(root, "checkout", "-q", "round/0000")
    (root / "data" / "rounds" / "0001" / "manifest.json").unlink()
    (root / "data" / "rounds" / "0001").rmdir()
    with pytest.raises(UserError, match="is a checkout of round 0, the newest is round 1: `vabal checkout newest`"):
        ask(root)


def test_a_detached_head_is_refused_also_at_the_newest_round(root: Path) -> None:
    git(root, "checkout", "-q", "round/0001")
    with pytest.raises(UserError, match="detached HEAD: `vabal checkout newest` goes back to the branch"):
        ask(root)


@pytest.mark.parametrize("named", [True, False])
def test_a_clone_that_is_behind_its_remote_is_refused_and_the_advice_works(root: Path, named: bool) -> None:
    remote = str(root.parent / "remote.git")
    git(root.parent, "clone", "-q", remote, "other")
    other = root.parent / "other"
    add_round(other, 2)
    Versioning(other).push_git(remote, ["round/0002"])
    if named:
        git(root, "remote", "add", "origin", remote)
        remote = "origin"
    with pytest.raises(UserError, match=r"has round 2, .* is at round 1: `git pull --tags") as refusal:
        ask(root, remote)
    advice = str(refusal.value).split("`")[1]
    subprocess.run(shlex.split(advice), cwd=root, check=True, capture_output=True)
    assert (root / "data.dvc").read_text() == "round 2\n"
    assert "round/0002" in Versioning(root).tags()
    with pytest.raises(UserError, match="`vabal checkout newest`"):  # data/ itself comes with that
        ask(root, remote)


def test_a_remote_that_does_not_answer_is_told_as_that(root: Path) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        ask(root, str(root.parent / "nowhere.git"))
