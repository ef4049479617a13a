"""The promotion record cannot be cut, made anew or added to unseen: real git, a registry in memory."""

import copy
import hashlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_registry import CLASSES, Killed, MemoryRegistry, Place, cut, even, make_place, mend
from vabal.adapters.versioning import Versioning
from vabal.audit import selections
from vabal.audit.witnesses import check_decisions
from vabal.errors import UserError
from vabal.promotion import agreement, champion, record, registered, registry
from vabal.promotion.champion import Entry, read_record, settle
from vabal.promotion.registry import PromotionContext


def record_of(place: Place) -> Path:
    return place.root / champion.RECORD


def found(place: Place) -> list[str]:
    witness = agreement.witness_here(place.data, place.history)
    return [finding.what for finding in selections.check_promotions(place.data, witness)]


def five_decisions(root: Path) -> Place:
    """Versions 1 and 2 promoted, 3 refused, back to 1, 4 promoted."""
    place = make_place(root)
    for number, right in ((1, 0.6), (2, 0.8)):
        place.publish(number, even(right))
        place.promote()
    place.publish(3, even(0.5))
    with pytest.raises(registry.NotPromoted):
        place.promote()
    place.rollback()
    place.publish(4, even(0.95))
    place.promote()
    assert place.actions() == ["promote", "promote", "refuse", "rollback", "promote"]
    return place


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return five_decisions(tmp_path_factory.mktemp("record") / "workspace")


def copied(template: Place, root: Path) -> Place:
    shutil.copytree(template.root, root, symlinks=True)
    registry = MemoryRegistry(dict(template.registry.versions), dict(template.registry.aliases))
    history = type(template.history)(root)
    return Place(PromotionContext(root, registry, history, template.office.who), registry, history)


@pytest.fixture
def place(template: Place, tmp_path: Path) -> Place:
    return copied(template, tmp_path / "workspace")


# -- every kind of wrong record -----------------------------------------------------------------------------------


def chained(entries: Sequence[Entry]) -> bytes:
    """The entries as a record, with numbers and parents that fit."""
    lines: list[Entry] = []
    for number, entry in enumerate(entries, start=1):
        lines.append(replace(entry, sequence=number, parent=lines[-1].digest() if lines else None))
    return b"".join(entry.line() + b"\n" for entry in lines)


def like(entry: Entry, **changes: Any) -> Entry:
    return Entry(**(copy.deepcopy(asdict(entry)) | changes))


def lines(entries: Sequence[Entry]) -> list[bytes]:
    return [entry.line() + b"\n" for entry in entries]


DAMAGES: dict[str, Callable[[list[Entry]], bytes | None]] = {
    "cut by one": lambda five: chained(five[:4]),
    "cut by two": lambda five: chained(five[:3]),
    "cut to one": lambda five: chained(five[:1]),
    "emptied": lambda _five: b"",
    "deleted": lambda _five: None,
    "last edited": lambda five: chained([*five[:4], like(five[4], who="Mallory")]),
    "last of another time": lambda five: chained([*five[:4], like(five[4], when="2026-03-05T02:00:00+00:00")]),
    "first edited, made anew": lambda five: chained([like(five[0], who="Mallory"), *five[1:]]),
    "middle edited, made anew": lambda five: chained([*five[:2], like(five[2], why="no reason"), *five[3:]]),
    "all edited, made anew": lambda five: chained([like(entry, who="Mallory") for entry in five]),
    "figures edited, made anew": lambda five: chained(
        [*five[:2], like(five[2], decision={**(five[2].decision or {}), "gain": 0.5}), *five[3:]]
    ),
    "refusal left out, made anew": lambda five: chained([*five[:2], *five[3:]]),
    "rollback left out, made anew": lambda five: chained(
        [*five[:3], like(five[4], previous_version="2", previous_round=2)]
    ),
    "refusal before the second, made anew": lambda five: chained(
        [five[0], like(five[2], previous_version="1", previous_round=1), five[1], *five[3:]]
    ),
    "one invented at the end": lambda five: chained(
        [*five, like(five[4], version="2", round=2, previous_version="4", previous_round=4)]
    ),
    "a refusal invented at the end": lambda five: chained(
        [*five, like(five[2], previous_version="4", previous_round=4)]
    ),
    "a rollback invented at the end": lambda five: chained(
        [*five, like(five[3], version="1", round=1, previous_version="4", previous_round=4)]
    ),
    "two invented at the end": lambda five: chained(
        [*five, *[like(five[2], previous_version="4", previous_round=4, who=who) for who in "AB"]]
    ),
    "one invented in the middle, made anew": lambda five: chained([*five[:3], like(five[2], who="Mallory"), *five[3:]]),
    "one invented at the start, made anew": lambda five: chained(
        [like(five[2], previous_version=None, previous_round=None), *five]
    ),
    "another decision at the end": lambda five: chained(
        [*five[:4], like(five[2], previous_version="1", previous_round=1)]
    ),
    "cut and grown again": lambda five: chained(
        [*five[:3], like(five[3], who="Mallory"), like(five[4], who="Mallory")]
    ),
    "cut and grown longer": lambda five: chained(
        [*five[:2], *[like(five[2], who=f"Mallory {number}") for number in range(6)]]
    ),
    "last twice, made anew": lambda five: chained(
        [*five[:3], like(five[2], who="Ada <ada@example.org>"), *five[3:], five[3]]
    ),
    "last twice": lambda five: b"".join([*lines(five), *lines(five[4:])]),
    "swapped": lambda five: b"".join(lines([*five[:3], five[4], five[3]])),
    "without its last line end": lambda five: b"".join(lines(five))[:-1],
    "with an empty line": lambda five: b"".join(lines(five)) + b"\n",
    "torn": lambda five: b"".join(lines(five))[:-40],
    "with a torn line more": lambda five: b"".join(lines(five)) + b'{"action":"promote"',
    "with another line end": lambda five: b"".join(lines(five)).replace(b"\n", b"\r\n"),
    "of another kind of entry": lambda five: chained([*five, like(five[4], action="crown", version="2")]),
    "a rollback too many": lambda five: chained([five[0], like(five[3], version="0", round=0)]),
    "another workspace's": lambda five: chained([like(five[0], version="7", round=7)]),
}


def commit(place: Place, *options: str) -> None:
    place.git("add", "--all", champion.RECORD)
    place.git("commit", "-q", *options, "-m", "tidy")


def bury(place: Place) -> None:
    commit(place)
    (place.root / "notes").write_text("x")
    place.git("add", "notes")
    place.git("commit", "-q", "-m", "notes")


WAYS: dict[str, Callable[[Place], None]] = {
    "as it is": lambda _place: None,
    "committed": bury,
    "amended": lambda place: commit(place, "--amend", "--allow-empty"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_record_is_found_offline_and_nothing_is_decided_on_it(place: Place, damage: str, way: str) -> None:
    path = record_of(place)
    content = DAMAGES[damage](list(read_record(place.root)))
    assert content != path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    WAYS[way](place)
    place.registry.aliases["champion"] = "1"  # what it would be moved off
    place.publish_challenger()
    before = place.registry.aliases, dict(place.registry.versions), place.git("rev-parse", "HEAD"), place.git("tag")
    assert found(place)
    for act in (place.promote, place.rollback, lambda: settle(place.office)):
        with pytest.raises(UserError) as refusal:
            act()
        assert type(refusal.value) is UserError
        assert "\n" not in str(refusal.value)
        assert champion.RECORD in str(refusal.value)
    assert (path.read_bytes() if path.exists() else None) == content
    assert before == (
        place.registry.aliases, dict(place.registry.versions), place.git("rev-parse", "HEAD"), place.git("tag")
    )  # fmt: skip


def test_the_record_as_it_was_decided_is_found_in_order(place: Place) -> None:
    assert found(place) == []
    assert settle(place.office)[1] == ()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("damage", ["cut by two", "all edited, made anew", "one invented at the end", "deleted"])
def test_the_advice_of_a_refusal_brings_the_record_back(place: Place, damage: str, way: str) -> None:
    path, right = record_of(place), record_of(place).read_bytes()
    content = DAMAGES[damage](list(read_record(place.root)))
    path.unlink() if content is None else path.write_bytes(content)
    WAYS[way](place)
    with pytest.raises(UserError) as refusal:
        place.rollback()
    for advice in re.findall(r"`(git (?:checkout|commit) [^`]*)`", str(refusal.value)):
        subprocess.run(shlex.split(advice), cwd=place.root, capture_output=True, check=False)
    assert path.read_bytes() == right
    assert place.rollback().action == "rolled back"
    assert found(place) == []


def test_all_tags_forged_with_the_record_still_disagree_with_the_manifests(place: Place) -> None:
    forged = chained([like(entry, who="Mallory") for entry in read_record(place.root)])
    record_of(place).write_bytes(forged)
    commit(place, "--amend")
    for entry in read_record(place.root):
        place.git("tag", "-f", "-a", "-m", f"record sha256:{entry.digest()}", record.tag_name(entry.sequence))
    assert found(place) == [
        f"entry {number} is not the one that round {number + 1}'s manifest names" for number in (1, 2)
    ] + ["entry 4 is not the one that round 4's manifest names"]
    with pytest.raises(UserError, match="manifest names"):
        place.promote()


# -- git's tags ---------------------------------------------------------------------------------------------------


def test_every_decision_has_an_annotated_tag_with_its_digest_at_a_commit_that_holds_its_line(place: Place) -> None:
    content = b""
    for entry in read_record(place.root):
        name = f"promotion/{entry.sequence:04d}"
        content += entry.line() + b"\n"
        assert place.git("cat-file", "-t", name) == "tag\n"
        assert f"record sha256:{entry.digest()}" in place.git(
            "for-each-ref", "--format=%(contents)", f"refs/tags/{name}"
        )
        assert place.git("show", f"{name}:{champion.RECORD}").encode() == content


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (["tag", "-d", "promotion/0003"], "entry 3 has no git tag promotion/0003"),
        (["tag", "-f", "promotion/0003"], "entry 3 is not the one that git tag promotion/0003 names"),
        (["tag", "-f", "-a", "-m", "x", "promotion/0003"], "entry 3 is not the one that git tag promotion/0003 names"),
        (["tag", "promotion/0006"], "ends with entry 5, git has a tag promotion/0006"),
        (["tag", "promotion/0000"], "ends with entry 5, git has a tag promotion/0000"),
    ],
)
def test_a_tag_that_is_missing_moved_or_added_is_found_and_refused(place: Place, wrong: list[str], what: str) -> None:
    place.git(*wrong)
    assert found(place) == [what]
    with pytest.raises(UserError, match=what):
        place.rollback()


def test_a_tag_moved_to_a_commit_without_its_entry_is_found(place: Place) -> None:
    message = place.history.tag_message("promotion/0005")
    place.git("tag", "-f", "-a", "-m", message, "promotion/0005", "promotion/0002^{commit}")
    assert found(place) == ["git tag promotion/0005 stands at a commit without its entry"]


def test_a_tag_that_was_lost_is_made_again_as_the_message_says(place: Place) -> None:
    place.git("tag", "-d", "promotion/0003")
    with pytest.raises(UserError, match="has no git tag") as refusal:
        place.rollback()
    advice = re.findall(r"`(git tag [^`]*)`", str(refusal.value))
    subprocess.run(shlex.split(advice[0]), cwd=place.root, check=True)
    assert list(check_decisions(place.history.tag_objects(), place.history)) == []
    assert place.rollback().action == "rolled back"


# -- records of versions that made no tags ------------------------------------------------------------------------


def without_tags(place: Place) -> None:
    place.git("tag", "-d", *place.git("tag", "--list", "promotion/*").split())
    for path in place.data.glob("rounds/*/manifest.json"):
        manifest = json.loads(path.read_bytes())
        del manifest["promotions"]
        path.write_text(json.dumps(manifest))


def test_a_record_without_any_tag_gets_them_all_once_and_that_is_told(place: Place) -> None:
    without_tags(place)
    assert found(place) == []
    assert settle(place.office)[1] == ("git had no tags promotion/0001 to promotion/0005: set",)
    assert settle(place.office)[1] == ()
    assert found(place) == []
    place.rollback()


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "deleted"])
def test_without_any_tag_mlflow_and_the_commits_vouch_for_the_record(place: Place, damage: str) -> None:
    without_tags(place)
    record_of(place).write_bytes(DAMAGES[damage](list(read_record(place.root))) or b"")
    assert found(place)
    commit(place)
    with pytest.raises(UserError):
        place.rollback()
    assert place.history.tags("promotion/*") == []


def test_a_first_line_that_nobody_decided_here_is_not_carried_out(place: Place, tmp_path: Path) -> None:
    first = read_record(place.root)[0]
    fresh = make_place(tmp_path / "fresh")
    fresh.publish(1, even(0.6))
    record_of(fresh).write_bytes(first.line() + b"\n")
    assert found(fresh) == ["entry 1 is in no commit, and no decision was begun here"]
    commit(fresh)
    with pytest.raises(UserError, match="version 1 in MLflow lacks the tag"):
        fresh.promote()
    assert "champion" not in fresh.registry.aliases


# -- MLflow's tags ------------------------------------------------------------------------------------------------


def retag(place: Place, version: str, change: Callable[[dict[str, str]], object]) -> None:
    tags = dict(place.registry.versions[version].tags)
    change(tags)
    place.registry.versions[version] = replace(place.registry.versions[version], tags=tags)


@pytest.mark.parametrize(
    ("version", "change", "what"),
    [
        (
            "2",
            lambda tags: tags.update({"vabal.promotion.0006": "{}"}),
            "ends with entry 5, version 2 in MLflow has a tag",
        ),
        (
            "1",
            lambda tags: tags.update({"vabal.promotion.0001": "{}"}),
            "entry 1 is not the one that version 1 was tagged",
        ),
        ("3", lambda tags: tags.pop("vabal.promotion.0003"), "version 3 in MLflow lacks the tag vabal.promotion.0003"),
        ("4", lambda tags: tags.pop("vabal.promotion.0005"), "version 4 in MLflow lacks the tag vabal.promotion.0005"),
    ],
)
def test_every_tag_in_mlflow_is_asked_not_only_the_last(
    place: Place, version: str, change: Callable[[dict[str, str]], object], what: str
) -> None:
    retag(place, version, change)
    with pytest.raises(UserError, match=what):
        place.promote()


def test_a_tag_that_mlflow_lost_is_set_again_as_the_message_says(place: Place) -> None:
    retag(place, "3", lambda tags: tags.pop("vabal.promotion.0003"))
    with pytest.raises(UserError, match=r"set that tag in MLflow again, to [0-9a-f]{64}") as refusal:
        place.rollback()
    digest = str(refusal.value).rpartition(" ")[2]
    retag(place, "3", lambda tags: tags.update({"vabal.promotion.0003": digest}))
    assert place.rollback().action == "rolled back"


def test_a_version_that_was_deleted_in_mlflow_says_nothing(place: Place) -> None:
    del place.registry.versions["3"]
    assert place.rollback().action == "rolled back"


# -- the bytes of a version ---------------------------------------------------------------------------------------


def exchange(place: Place, version: str, name: str, sha256: str | None) -> None:
    files = {**place.registry.versions[version].files, name: sha256 or ""}
    if sha256 is None:
        del files[name]
    place.registry.versions[version] = replace(place.registry.versions[version], files=files)


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("artifacts/weights.safetensors", "0" * 64),
        ("serving.py", "0" * 64),
        ("code/evil.py", "0" * 64),
        ("serving.py", None),
    ],
)
def test_a_version_whose_bytes_were_exchanged_never_becomes_champion(
    place: Place, name: str, sha256: str | None
) -> None:
    place.publish_challenger()
    exchange(place, "5", name, sha256)
    exchange(place, "1", name, sha256)
    before = place.state()
    with pytest.raises(UserError, match=rf"version 5 in MLflow is not what round 5 registered: {re.escape(name)}"):
        place.promote()
    with pytest.raises(UserError, match="version 1 in MLflow is not what round 1 registered"):
        place.rollback()
    assert place.state() == before
    exchange(place, "4", name, sha256)
    place.registry.aliases["champion"] = "1"
    with pytest.raises(UserError, match="version 4 in MLflow is not what round 4 registered"):
        settle(place.office)
    assert place.registry.aliases["champion"] == "1"


def test_a_champion_whose_bytes_were_exchanged_can_be_left_by_rollback_and_by_a_better_one(place: Place) -> None:
    exchange(place, "4", "serving.py", "0" * 64)
    place.registry.aliases["champion"] = "2"
    assert place.rollback().entry.version == "1"  # type: ignore[union-attr]
    assert place.registry.aliases["champion"] == "1"


def shipped(name: str) -> str:
    return min(registered._CODE[name])


def test_a_version_whose_round_recorded_the_weights_alone_is_held_against_what_was_shipped(place: Place) -> None:
    path = place.data / "rounds" / "0001" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["model"]["files"]
    manifest["settings"] = {"images": {"size": 8, "channels": 1}}
    path.write_text(json.dumps(manifest))
    sources = {"serving.py": shipped("serving.py"), "artifacts/network.py": shipped("artifacts/network.py")}
    weights = place.registry.versions["1"].weights_sha256
    about = hashlib.sha256(registered.classes_json(CLASSES, 8, 1, weights)).hexdigest()
    files = {"artifacts/weights.safetensors": weights, "artifacts/classes.json": about, "MLmodel": "5" * 64, **sources}
    for name in sources:
        place.registry.versions["1"] = replace(place.registry.versions["1"], files={**files, name: "0" * 64})
        with pytest.raises(UserError, match=f"is not what round 1 registered: {name}"):
            place.rollback()
    place.registry.versions["1"] = replace(place.registry.versions["1"], files=files)
    outcome = place.rollback()
    assert outcome.mended == ("round 1 recorded no digest of version 1's MLmodel: not compared",)


# -- where promotions may happen ----------------------------------------------------------------------------------


def tag_rounds(place: Place) -> None:
    """`data.dvc` and tags as rounds leave them, of the rounds that there are."""
    for number in sorted(int(path.name) for path in (place.data / "rounds").iterdir()):
        (place.root / "data.dvc").write_text(f"{number}\n")
        place.history.commit(["data.dvc"], f"round {number}")
        place.history.tag(f"round/{number:04d}", f"round {number}")


def test_in_a_checkout_of_an_older_round_nothing_is_promoted_and_the_alias_stays(place: Place) -> None:
    tag_rounds(place)
    place.git("checkout", "-q", "promotion/0001")
    for number in (2, 3, 4):
        shutil.rmtree(place.data / "rounds" / f"{number:04d}")
    for act in (place.promote, place.rollback):
        with pytest.raises(UserError, match=r"round 1, the newest is round 4: `vabal checkout newest`"):
            act()
    assert place.registry.aliases["champion"] == "4"
    assert found(place) == []  # that round's past is in order


def test_a_detached_head_is_no_place_to_promote_and_its_past_is_in_order(place: Place) -> None:
    tag_rounds(place)
    place.git("checkout", "-q", "promotion/0005")
    with pytest.raises(UserError, match=r"detached HEAD: `vabal checkout newest`"):
        place.rollback()
    assert found(place) == []


def two_machines(place: Place, tmp_path: Path) -> tuple[Place, Place, str]:
    """Two clones of a remote, with the same `data/` and the same registry."""
    remote = str(tmp_path / "remote.git")
    place.git("init", "-q", "--bare", remote)
    branch = place.history.branch()
    here = replace(place.office, git_remote=remote)
    place.office = here
    settle(here)
    assert len(place.history.remote_tags(remote, "promotion/*")) == 5  # those of before there was a remote
    subprocess.run(["git", "clone", "-q", "-b", str(branch), remote, str(tmp_path / "other")], check=True)
    shutil.copytree(place.data, tmp_path / "other" / "data")
    for key, value in (("user.name", "Bob"), ("user.email", "bob@example.org")):
        subprocess.run(["git", "config", key, value], cwd=tmp_path / "other", check=True)
    history = type(place.history)(tmp_path / "other")
    other = Place(PromotionContext(tmp_path / "other", place.registry, history, "Bob", remote), place.registry, history)
    return place, other, remote


def test_a_clone_that_is_behind_is_refused_in_one_line_and_the_advice_works(place: Place, tmp_path: Path) -> None:
    one, other, remote = two_machines(place, tmp_path)
    other.rollback()
    with pytest.raises(UserError, match="the git remote has a tag promotion/0006: `git pull --tags") as refusal:
        one.promote("2")
    assert "\n" not in str(refusal.value)
    assert one.registry.aliases["champion"] == "1"
    pull = re.findall(r"`(git pull [^`]*)`", str(refusal.value))[0]
    subprocess.run(shlex.split(pull), cwd=one.root, check=True)
    assert one.promote("2").action == "promoted"
    assert Versioning(other.root).remote_tags(remote, "promotion/*").keys() >= {"promotion/0007"}


def test_a_clone_without_a_commit_of_its_remote_is_refused_before_anything_is_written(
    place: Place, tmp_path: Path
) -> None:
    one, other, remote = two_machines(place, tmp_path)
    (other.root / "notes").write_text("x")
    other.history.commit(["notes"], "notes")
    other.history.push_git(remote, [])
    before = one.state()
    with pytest.raises(UserError, match="has commits that are not here"):
        one.rollback()
    assert one.state() == before


def test_of_two_machines_that_decide_at_once_the_second_takes_its_decision_back(place: Place, tmp_path: Path) -> None:
    one, other, _remote = two_machines(place, tmp_path)
    cut(one, 4)  # committed and tagged, not pushed
    with pytest.raises(Killed):
        one.rollback()
    mend(one)
    assert "promotion/0006" in one.history.tags("promotion/*")
    other.rollback()
    with pytest.raises(
        UserError, match=r"another machine made decision 6 first; .* was taken back: `git pull"
    ) as refusal:
        one.rollback()
    pull = re.findall(r"`(git pull [^`]*)`", str(refusal.value))[0]
    subprocess.run(shlex.split(pull), cwd=one.root, check=True)
    assert record_of(one).read_bytes() == record_of(other).read_bytes()
    assert settle(one.office)[1] == ()
    assert found(one) == []
