"""Whether `data/` holds the newest round, asked of real git and a real remote."""

import json
import shlex
from pathlib import Path

import pytest

from tests.support.repositories import git
from tests.support.small_manifests import manifest as small_manifest
from vabal import rounds
from vabal.adapters.versioning import Versioning
from vabal.errors import Unavailable, UserError
from vabal.workspace import Workspace


def add_round(root: Path, number: int) -> None:
    """A round as far as git and `data/` show it."""
    folder = rounds.round_folder(root / "data", number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(small_manifest(number)))
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


def forget_data_of(root: Path, number: int) -> None:
    (root / "data" / "rounds" / f"{number:04d}" / "manifest.json").unlink()
    (root / "data" / "rounds" / f"{number:04d}").rmdir()


def follow(root: Path, refusal: pytest.ExceptionInfo[UserError]) -> None:
    """What the message says, but for our own command at its end."""
    git(root, *shlex.split(str(refusal.value).split("`")[1])[1:])


def test_a_checkout_of_an_older_round_is_refused_in_one_line(root: Path) -> None:
    git(root, "checkout", "-q", "round/0000")
    forget_data_of(root, 1)
    with pytest.raises(UserError, match="is a checkout of round 0, the newest is round 1: `vabal checkout newest`"):
        ask(root)


def test_a_commit_whose_pools_are_not_here_yet_says_so(root: Path) -> None:
    forget_data_of(root, 1)
    with pytest.raises(
        UserError, match=r"has the commit of round 1, but data/ is as round 0 left it: `vabal checkout`"
    ):
        ask(root)


@pytest.mark.parametrize("pools", ["old", "new"])
def test_a_branch_behind_the_newest_round_is_refused_whatever_data_holds(root: Path, pools: str) -> None:
    git(root, "switch", "-q", "--create", "side", "round/0000")
    if pools == "old":
        forget_data_of(root, 1)
    with pytest.raises(UserError, match="branch side does not hold the newest round, round/0001: `vabal checkout new"):
        ask(root)


def test_a_tag_that_was_fetched_without_its_branch_leads_there_by_a_fast_forward(root: Path) -> None:
    git(root, "reset", "-q", "--hard", "round/0000")
    with pytest.raises(UserError, match=r"`git merge --ff-only round/0001`, then `vabal checkout`") as refusal:
        ask(root)
    follow(root, refusal)
    ask(root)


def test_a_branch_that_went_its_own_way_is_merged(root: Path) -> None:
    git(root, "reset", "-q", "--hard", "round/0000")
    git(root, "commit", "-q", "--allow-empty", "-m", "settings")
    with pytest.raises(UserError, match=r"`git merge round/0001`, then `vabal checkout`") as refusal:
        ask(root)
    follow(root, refusal)
    ask(root)


def test_an_unborn_branch_is_refused_and_commits_on_top_are_fine(root: Path) -> None:
    git(root, "commit", "-q", "--allow-empty", "-m", "settings")
    ask(root)
    git(root, "commit", "-q", "--amend", "--allow-empty", "-m", "settings again")
    ask(root)
    git(root, "switch", "-q", "--orphan", "empty")
    with pytest.raises(UserError, match="branch empty does not hold the newest round"):
        ask(root)


def test_a_round_whose_commit_was_written_anew_is_the_same_round(root: Path) -> None:
    git(root, "commit", "-q", "--amend", "-m", "round 1, in other words")
    ask(root)


def test_a_half_published_round_is_named_with_its_two_ways_out(root: Path) -> None:
    (root / ".vabal" / "publish").mkdir(parents=True)
    (root / ".vabal" / "publish" / "plan.json").write_text('{"round": 2, "message": "round 2", "files": {}}')
    with pytest.raises(UserError, match="round 2 is half published: `vabal round` finishes it, `vabal abandon` drops"):
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
    with pytest.raises(UserError, match="has round 2, here is round 1: `git pull --rebase") as refusal:
        ask(root, remote)
    follow(root, refusal)
    assert (root / "data.dvc").read_text() == "round 2\n"
    assert "round/0002" in Versioning(root).tags()
    with pytest.raises(UserError, match="`vabal checkout` brings it"):  # data/ itself comes with that
        ask(root, remote)


def test_another_round_of_the_same_number_at_the_remote_is_refused(root: Path) -> None:
    remote = str(root.parent / "remote.git")
    git(root.parent, "clone", "-q", remote, "other")
    add_round(root.parent / "other", 2)
    Versioning(root.parent / "other").push_git(remote, ["round/0002"])
    git(root, "commit", "-q", "--allow-empty", "-m", "settings")
    add_round(root, 2)
    ask(root)
    with pytest.raises(UserError, match=r"round/0002 at git remote .* is another round than the one here: clone it"):
        ask(root, remote)


def test_a_remote_that_does_not_answer_is_told_as_that(root: Path) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        ask(root, str(root.parent / "nowhere.git"))


def test_an_older_checkout_asks_nobody_for_labels_that_may_have_come(root: Path) -> None:
    rounds.refuse_older_checkout(Workspace(root), Versioning(root))
    git(root, "checkout", "--quiet", "round/0000")
    forget_data_of(root, 1)

    with pytest.raises(UserError, match="checkout of round 0, the newest is round 1: `vabal checkout newest`"):
        rounds.refuse_older_checkout(Workspace(root), Versioning(root))


def test_a_remote_that_was_named_late_gets_the_tags_of_the_past_with_the_next_push(root: Path) -> None:
    git(root.parent, "init", "-q", "--bare", "-b", "main", "late.git")
    add_round(root, 2)
    versions = Versioning(root)
    versions.push_git(str(root.parent / "late.git"), ["round/0002"])

    there = versions.remote_tag_objects(str(root.parent / "late.git"))
    assert there == versions.tag_objects()
    assert sorted(there) == ["round/0000", "round/0001", "round/0002"]
