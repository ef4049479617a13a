"""States that people and cut-off commands leave, and the ways out that the messages tell: on real git and DVC."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_nights as small
from small_nights import asked
from workspaces import call, done

from tests.support.repositories import git
from vabal import audit, pools, rounds
from vabal.adapters.versioning import Versioning
from vabal.errors import Unavailable, UserError
from vabal.rounds import moves, withdrawal
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


# -- nothing to measure, hardly anything to learn from ------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["random", "vabal"])
def test_without_a_holdout_a_round_picks_and_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    small.without_servers(monkeypatch)
    place = small.make(tmp_path, holdout=0.0, settings={"selection.strategy": strategy})
    assert rounds.head(place.data).to_json()["counts"]["holdout"] == 0
    small.night(place)
    manifest = rounds.head(place.data).to_json()
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
        assert rounds.head(place.data).to_json()["metrics"] == {}
    small.take(place, dict(zip(names[3:6], small.CLASSES, strict=True)) | dict.fromkeys(held[:2], "1"))
    small.night(place)
    measured = rounds.head(place.data).to_json()["metrics"]
    assert {"holdout/accuracy", "holdout/recall/1"} <= measured.keys()
    assert "holdout/recall/0" not in measured
    assert verified(place)


# -- a publication that was cut short -------------------------------------------------------------------------------


class Cut(Exception):  # noqa: N818
    """In the place of a kill."""


def cut_after(place: Workspace, step: str) -> None:
    """A night whose publication ends after this step."""

    def reached(name: str) -> None:
        if name == step:
            raise Cut

    small.stage(place)
    with pytest.raises(Cut):
        rounds.carry_out(place, Versioning(place.root), reached=reached)


def cut_between_two_files(place: Workspace, monkeypatch: pytest.MonkeyPatch, git_remote: str | None = None) -> str:
    """A night with a label, cut when one of its files was in place; the label's name in the inbox."""
    name = small.take(place, {asked(place)[0]: "1"})
    small.stage(place, git_remote=git_remote)
    put, ended = moves._put, False

    def once(staged: Path, target: Path, sha256: str) -> None:
        nonlocal ended
        if ended:
            raise Cut
        put(staged, target, sha256)
        ended = True

    with monkeypatch.context() as patch:
        patch.setattr(moves, "_put", once)
        with pytest.raises(Cut):
            rounds.carry_out(place, Versioning(place.root))
    return name


@pytest.mark.parametrize("first", ["vabal checkout", "dvc checkout"])
def test_a_publication_cut_between_two_files_is_finished_also_after_its_pools_were_brought_back(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    cut_between_two_files(place, monkeypatch)
    if first == "vabal checkout":
        said = call(place.root, "checkout", "--force")
        assert (said.code, said.err) == (
            1,
            "vabal: round 2 is half published: `vabal round` finishes it, `vabal abandon` drops it\n",
        )
    if first == "dvc checkout":
        Versioning(place.root).bring_back()
    done = rounds.carry_out(place, Versioning(place.root))
    assert done is not None
    assert (done.round, rounds.head(place.data).round) == (2, 2)
    assert small.pending(place) == []
    assert verified(place)
    assert small.night(place).round == 3


def test_readers_and_imports_meet_whole_pools_while_a_publication_is_cut_short_and_servers_are_away(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_between_two_files(place, monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    done(call(place.root, "audit"))
    assert rounds.head(place.data).round == 2
    for command in (["audit", "--verify"], ["audit", "2"], ["labels", "export", "requests"]):
        Versioning(place.root).bring_back()
        said = call(place.root, *command)
        if "--verify" not in command:  # its tag is still missing
            done(said)
        assert rounds.head(place.data).round == 2
    image = asked(place)[0]
    (tmp_path / "more.csv").write_text(f"sample_id,label,annotator\n{image},2,ada\n")
    Versioning(place.root).bring_back()
    assert "1 labels" in done(call(place.root, "labels", "import", str(tmp_path / "more.csv"))).out
    Versioning(place.root).bring_back()
    done(call(place.root, "ingest", str(small.pictures(tmp_path / "camera"))))
    rounds.carry_out(place, Versioning(place.root))
    assert len(small.pending(place)) == 2
    assert small.night(place).round == 3
    assert verified(place)


def test_a_deleted_data_folder_or_a_lost_table_is_brought_back_under_a_pending_publication(place: Workspace) -> None:
    small.stage(place)
    shutil.rmtree(place.data)
    rounds.carry_out(place, Versioning(place.root))
    assert verified(place)


def test_a_damaged_plan_or_one_of_a_newer_version_is_dropped_as_its_message_says(place: Workspace) -> None:
    cut_after(place, "moved")
    plan = place.state / "publish" / "plan.json"
    for content in (b"{", b'{"round": 2, "message": "x", "files": {}, "new": 1}'):
        plan.write_bytes(content)
        for command in (["audit"], ["checkout"]):
            said = call(place.root, *command)
            assert said.code == 1
            assert "is damaged, or of a newer version: `vabal abandon` drops that publication" in said.err
    done(call(place.root, "abandon"))
    assert rounds.head(place.data).round == 1
    assert small.night(place).round == 2
    assert verified(place)


# -- vabal abandon --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["staged", "moved", "committed", "tagged", "finished"])
def test_abandon_drops_a_publication_wherever_it_was_cut_and_the_next_round_works(place: Workspace, step: str) -> None:
    label = small.take(place, {asked(place)[0]: "1"})
    before = git(place.root, "rev-parse", "HEAD"), (place.root / "data.dvc").read_bytes(), rounds.head(place.data)
    if step == "staged":
        small.stage(place)
    else:
        cut_after(place, step)
    said = done(call(place.root, "abandon"))
    assert "the publication of round 2 is dropped" in said.out
    assert "1 files of labels and images stay in the inbox" in said.out
    assert (git(place.root, "rev-parse", "HEAD"), (place.root / "data.dvc").read_bytes()) == before[:2]
    assert rounds.head(place.data) == before[2]
    assert git(place.root, "status", "--porcelain") == ""
    assert small.pending(place) == [label]
    assert "round/0002" not in git(place.root, "tag")
    if step == "tagged":
        assert small.night(place).round == 2
        assert small.pending(place) == []
        assert verified(place)


def test_abandon_undoes_a_commit_below_others_by_a_new_one(place: Workspace) -> None:
    cut_after(place, "committed")
    (place.root / "notes.txt").write_text("mine")
    git(place.root, "add", "notes.txt")
    git(place.root, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "notes")
    done(call(place.root, "abandon"))
    assert git(place.root, "log", "-1", "--format=%s").startswith("Undone: round 2: ")
    assert (place.root / "notes.txt").read_text() == "mine"
    assert verified(place)
    assert small.night(place).round == 2


def test_abandon_drops_an_open_round_and_says_when_there_is_none(place: Workspace) -> None:
    small.begin(place)
    said = done(call(place.root, "abandon"))
    assert said.out.startswith("round 2 is dropped")
    assert "MLflow was not told" in said.out
    said = call(place.root, "abandon")
    assert (said.code, said.err) == (
        1,
        "vabal: there is nothing to abandon: no round is open, and none is half published\n",
    )


# -- two machines ---------------------------------------------------------------------------------------------------


def tell(told: list[str]) -> withdrawal.Tell:
    def note(plan: rounds.Plan | None, status: str) -> None:
        told.append(f"{status} {plan.round if plan else 'open'}")

    return note


@pytest.mark.parametrize("both", ["the same labels", "the same images"])
def test_the_machine_that_was_second_gives_way_and_its_labels_go_into_its_next_round(
    folder: Path, place: Workspace, both: str
) -> None:
    other = clone(folder)
    names = asked(place)
    told: list[str] = []
    for number, machine in enumerate((other, place)):
        small.take(machine, {names[0 if both == "the same labels" else number]: "1"})
        if both == "the same images":
            done(call(machine.root, "ingest", str(small.pictures(folder / f"camera{number}"))))
        small.stage(machine, git_remote="origin")
    assert rounds.carry_out(other, Versioning(other.root)) is not None
    with pytest.raises(rounds.Overtaken, match="another machine has published round/0002 at git remote origin first"):
        rounds.carry_out(place, Versioning(place.root))
    said = withdrawal.give_way(place, Versioning(place.root), "origin", tell(told))
    assert "data/ is as its round 2 left it" in said
    assert told == ["lost 2"]
    assert rounds.head(place.data) == rounds.head(other.data)
    assert len(small.pending(place)) == (2 if both == "the same images" else 1)
    newest(place, "origin")
    assert small.night(place, git_remote="origin").round == 3
    assert small.pending(place) == []
    assert verified(place)
    events = pools.load(place.data).label_events
    taken = events[events["annotator"] == "ada"]
    assert sorted(taken["sample_id"]) == sorted({names[0], names[0 if both == "the same labels" else 1]})
    assert git(folder / "git.git", "tag").split()[-1] == "round/0003"


@pytest.mark.parametrize("step", ["tagged"])
def test_a_loser_that_had_committed_before_it_knew_is_undone(folder: Path, place: Workspace, step: str) -> None:
    other = clone(folder)
    small.stage(place, git_remote="origin")

    def reached(name: str) -> None:
        if name == step:
            raise Cut

    with pytest.raises(Cut):
        rounds.carry_out(place, Versioning(place.root), reached=reached)
    small.night(other, git_remote="origin")
    with pytest.raises(rounds.Overtaken):
        rounds.carry_out(place, Versioning(place.root))
    withdrawal.give_way(place, Versioning(place.root), "origin", tell([]))
    assert git(place.root, "rev-parse", "HEAD") == git(other.root, "rev-parse", "HEAD")
    assert small.night(place, git_remote="origin").round == 3


def test_two_pushes_at_once_leave_one_round_and_one_overtaken(folder: Path, place: Workspace) -> None:
    other = clone(folder)
    small.stage(place, git_remote="origin")

    class Slow(Versioning):
        def push_git(self, remote: str, names: list[str]) -> None:
            if not small.is_published(folder / "git.git", "round/0002"):
                small.night(other, git_remote="origin")  # between the look and the push
            super().push_git(remote, names)

    with pytest.raises(rounds.Overtaken):
        rounds.carry_out(place, Slow(place.root))
    withdrawal.give_way(place, Versioning(place.root), "origin", tell([]))
    assert rounds.head(place.data) == rounds.head(other.data)


def test_commits_of_others_that_are_no_round_go_below(folder: Path, place: Workspace) -> None:
    other = clone(folder)
    (other.root / "notes.txt").write_text("theirs")
    Versioning(other.root).commit(["notes.txt"], "notes")
    git(other.root, "push", "--quiet", "origin", "main")
    assert small.night(place, git_remote="origin").round == 2
    assert (place.root / "notes.txt").read_text() == "theirs"
    assert git(folder / "git.git", "rev-parse", "main") == git(place.root, "rev-parse", "round/0002^{commit}")
    assert verified(place)


def test_a_remote_that_is_away_keeps_the_publication_and_a_public_round_is_not_abandoned(
    folder: Path, place: Workspace
) -> None:
    small.stage(place, git_remote="origin")
    (folder / "git.git").rename(folder / "away.git")
    with pytest.raises(Unavailable, match="git remote origin does not answer"):
        rounds.carry_out(place, Versioning(place.root))
    (folder / "away.git").rename(folder / "git.git")

    def die(_: rounds.Plan) -> None:
        raise Cut

    with pytest.raises(Cut):
        rounds.carry_out(place, Versioning(place.root), die)
    said = call(place.root, "abandon")
    assert (said.code, said.err) == (
        1,
        "vabal: round 2 is at git remote origin already: `vabal round` finishes it here\n",
    )
    assert rounds.carry_out(place, Versioning(place.root)) is not None
    assert verified(place)


def test_a_round_that_was_anchored_is_not_abandoned(place: Workspace) -> None:
    small.stage(place)

    def die(_: rounds.Plan) -> None:
        raise Cut

    with pytest.raises(Cut):
        rounds.carry_out(place, Versioning(place.root), die)
    anchored = {"round/0002": "manifest sha256:00"}
    with pytest.raises(UserError, match="round 2 is anchored already: `vabal round` finishes it here"):
        withdrawal.abandon(place, Versioning(place.root), tell([]), anchored.get)
    assert rounds.carry_out(place, Versioning(place.root)) is not None
    assert verified(place)
