"""States that people and cut-off commands leave, and the ways out that the messages tell: on real git and DVC."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_nights as small
from small_nights import asked, git
from workspaces import TwoNights, call, done, run

from vabal import audit, rounds
from vabal.adapters.versioning import Versioning
from vabal.errors import UserError
from vabal.workspace import Workspace


@pytest.fixture(scope="module")
def after_a_night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`work` after rounds 0 and 1, pushed to `git.git` and `pools` beside it. Copied for each test."""
    folder = tmp_path_factory.mktemp("states")
    with pytest.MonkeyPatch.context() as patch:
        small.without_servers(patch)
        place = small.make(folder)
        small.night(place)
        git(folder, "init", "--quiet", "--bare", "--initial-branch=main", "git.git")
        git(place.root, "remote", "add", "origin", str(folder / "git.git"))
        Versioning(place.root).push_git("origin", ["round/0000", "round/0001"])
        yield folder


@pytest.fixture
def folder(after_a_night: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small.without_servers(monkeypatch)
    for name in ("work", "git.git"):
        shutil.copytree(after_a_night / name, tmp_path / name, symlinks=True)
    git(tmp_path / "work", "remote", "set-url", "origin", str(tmp_path / "git.git"))
    return tmp_path


@pytest.fixture
def place(folder: Path) -> Workspace:
    return Workspace(folder / "work")


def clone(folder: Path, name: str = "other") -> Workspace:
    """Another machine's workspace, as it is made: a git clone, and its pools from the bucket."""
    git(folder, "clone", "--quiet", "git.git", name)
    done(call(folder / name, "checkout"))
    return Workspace(folder / name)


def publish(place: Workspace, number: int) -> None:
    Versioning(place.root).push_git("origin", [rounds.tag_name(number)])


def verified(place: Workspace) -> bool:
    versions = Versioning(place.root)
    report = audit.verify(place.data, {tag: versions.tag_message(tag) for tag in versions.tags()})
    assert report.ok, report.findings
    return not versions.changed()


def newest(place: Workspace, git_remote: str | None = None) -> None:
    rounds.require_newest(place, Versioning(place.root), git_remote)


def follow(place: Workspace, message: str) -> None:
    """Type what the message says between its backticks, in that order."""
    for words in map(shlex.split, message.split("`")[1::2]):
        if words[0] == "git":
            git(place.root, *words[1:])
        else:
            done(call(place.root, *words[1:]))


# -- not the newest round -----------------------------------------------------------------------------------------


def test_out_of_an_older_round_leads_what_the_refusal_says(place: Workspace) -> None:
    done(call(place.root, "checkout", "0"))
    with pytest.raises(UserError, match="is a checkout of round 0, the newest is round 1") as refusal:
        newest(place)
    follow(place, str(refusal.value))
    newest(place)
    assert small.night(place).round == 2


def test_behind_another_machine_the_refusal_leads_to_its_round_without_force(folder: Path, place: Workspace) -> None:
    other = clone(folder)
    small.night(other)
    publish(other, 2)
    with pytest.raises(UserError, match="git remote origin has round 2, here is round 1") as refusal:
        newest(place, "origin")
    follow(place, str(refusal.value))
    newest(place, "origin")
    assert rounds.head(place.data) == rounds.head(other.data)
    assert small.night(place).round == 3


def test_going_on_from_a_published_round_still_keeps_what_was_edited_by_hand(folder: Path, place: Workspace) -> None:
    other = clone(folder)
    small.night(other)
    publish(other, 2)
    git(place.root, "pull", "--quiet", "--tags", "origin", "main")
    (place.data / "classes.json").write_text("[]")
    said = call(place.root, "checkout")
    assert said.code == 1
    assert said.err.startswith("vabal: data/ was edited by hand: data/classes.json, ")
    done(call(place.root, "checkout", "--force"))
    newest(place)


def test_a_round_of_an_older_checkout_ends_before_anything_is_trained(nights: TwoNights, tmp_path: Path) -> None:
    root = nights.copy(tmp_path / "copy")
    done(call(root, "checkout", "1"))
    stages = sorted((root / ".vabal" / "stages").glob("*/*"))
    said = run(root, "round")
    assert said.code == 1
    assert said.err.splitlines()[-1] == (
        f"vabal: {root} is a checkout of round 1, the newest is round 2: "
        "`vabal checkout newest` goes back to the branch"
    )
    assert sorted((root / ".vabal" / "stages").glob("*/*")) == stages


# -- nothing to measure, hardly anything to learn from ------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["random", "vabal"])
def test_without_a_holdout_a_round_picks_and_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    small.without_servers(monkeypatch)
    place = small.make(tmp_path, holdout=0.0, settings={"selection.strategy": strategy})
    assert rounds.head(place.data).manifest["counts"]["holdout"] == 0
    small.night(place)
    manifest = rounds.head(place.data).manifest
    assert (manifest["metrics"], manifest["counts"]["picks"]) == ({}, 4)
    assert verified(place)
    assert "recall" not in done(call(place.root, "audit")).out


@pytest.mark.parametrize("strategy", ["random", "vabal"])
def test_with_one_label_of_one_class_and_none_of_the_holdout_rounds_go_on_and_better_ones_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    small.without_servers(monkeypatch)
    place = small.make(tmp_path, labelled=False, settings={"selection.strategy": strategy})
    names, held = asked(place), asked(place, "holdout")
    for number, labels in enumerate((dict.fromkeys(names[:1], "0"), dict.fromkeys(names[1:3], "0")), start=1):
        small.take(place, labels)
        assert small.night(place).round == number
        assert rounds.head(place.data).manifest["metrics"] == {}
    small.take(place, dict(zip(names[3:6], small.CLASSES, strict=True)) | dict.fromkeys(held[:2], "1"))
    small.night(place)
    measured = rounds.head(place.data).manifest["metrics"]
    assert {"holdout/accuracy", "holdout/recall/1"} <= measured.keys()
    assert "holdout/recall/0" not in measured
    assert verified(place)
