"""A round's record and its publication: the chain, the plan, and every step again after a kill."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.recording import Recording
from tests.support.small_manifests import manifest as small_manifest
from tests.support.small_pools import small_pools
from vabal import pools, rounds
from vabal.errors import Unavailable, UserError
from vabal.files import canonical_json
from vabal.rounds import OpenRound, Plan
from vabal.workspace import Workspace

NOW = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """With round 0 and two files waiting in the inbox."""
    place = Workspace(tmp_path)
    write_manifest(place, 0)
    for name in ("labels/000001-aaaaaaaa.parquet", "labels/000002-bbbbbbbb.parquet"):
        (place.inbox / name).parent.mkdir(parents=True, exist_ok=True)
        (place.inbox / name).write_bytes(b"labels")
    (place.inbox / "images/000003-cccccccc").mkdir(parents=True)
    return place


def write_manifest(place: Workspace, number: int, **said: Any) -> bytes:
    folder = rounds.round_folder(place.data, number)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(small_manifest(number, **said)).encode()
    (folder / "manifest.json").write_bytes(content)
    return content


# -- manifests ----------------------------------------------------------------------------------------------------


def test_the_head_is_the_newest_round_also_beyond_9999(workspace: Workspace) -> None:
    assert rounds.head(workspace.data).round == 0
    write_manifest(workspace, 9999)
    content = write_manifest(workspace, 10_000)
    found = rounds.head(workspace.data)
    assert (found.round, found.content) == (10_000, content)
    assert found.digest == hashlib.sha256(content).hexdigest()
    assert rounds.manifest_numbers(workspace.data) == [0, 9999, 10_000]
    assert rounds.tag_name(7) == "round/0007"


def test_a_missing_or_damaged_manifest_is_told_with_the_way_out(workspace: Workspace) -> None:
    with pytest.raises(UserError, match=r"round 4 has no manifest"):
        rounds.read_manifest(workspace.data, 4)
    (rounds.round_folder(workspace.data, 0) / "manifest.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"damaged: `vabal checkout --force`"):
        rounds.head(workspace.data)
    with pytest.raises(UserError, match="holds no round"):
        rounds.head(workspace.root / "nowhere")


def test_the_tags_message_tells_the_counts_and_the_manifests_digest() -> None:
    counts = pools.counts(small_pools(), 1)
    assert counts == {
        **{"catalog": 4, "labeled": 1, "unlabeled": 2, "available": 1, "requested": 1, "rejected": 0},
        **{"holdout": 1, "picks": 1},
    }
    content = canonical_json(small_manifest(3, strategy="vabal", counts=counts))
    assert rounds.Manifest.parse(content).tag_message == (
        f"round 3: 1 picks (vabal), 1 labeled, 2 unlabeled\n\nmanifest sha256:{hashlib.sha256(content).hexdigest()}"
    )


# -- the open round -----------------------------------------------------------------------------------------------


def test_a_round_that_has_learned_keeps_what_it_takes_in_whatever_comes_later(workspace: Workspace) -> None:
    begun = rounds.open_round(workspace, ["labels/000001-aaaaaaaa.parquet"], NOW)
    assert begun == OpenRound(
        1, rounds.head(workspace.data).digest, ("labels/000001-aaaaaaaa.parquet",), "2024-06-01T02:00:00+00:00"
    )
    later = datetime(2024, 6, 2, tzinfo=UTC)
    rounds.keep(workspace, begun)
    begun = replace(begun, learned=True)
    assert rounds.open_round(workspace, ["labels/000002-bbbbbbbb.parquet"], later) == begun
    assert OpenRound.from_json(json.loads(json.dumps(begun.to_json()))) == begun


def test_a_round_that_has_not_learned_or_has_failed_takes_in_what_came_meanwhile(workspace: Workspace) -> None:
    first, second = ["labels/000001-aaaaaaaa.parquet"], ["labels/000001-aaaaaaaa.parquet", "images/000003-cccccccc"]
    begun = rounds.open_round(workspace, first, NOW)
    again = rounds.open_round(workspace, second, NOW)
    assert again.inbox == tuple(second)
    rounds.keep(workspace, again)
    assert rounds.open_round(workspace, first, NOW).inbox == tuple(second)
    rounds.reopen(workspace)
    assert rounds.open_round(workspace, first, NOW) == begun


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"round": 1, "parent": "x", "inbox": 3, "started": ""}']
)
def test_a_damaged_note_of_a_begun_round_is_no_round(workspace: Workspace, content: bytes) -> None:
    (workspace.state / "round.json").write_bytes(content)
    assert rounds.open_round(workspace, [], NOW).round == 1


def test_a_begun_round_is_given_up_when_its_parent_or_its_inbox_changed(workspace: Workspace) -> None:
    first = "labels/000001-aaaaaaaa.parquet"
    begun = rounds.open_round(workspace, [first], NOW)
    (workspace.inbox / first).unlink()
    again = rounds.open_round(workspace, [], NOW)
    assert (again.round, again.inbox) == (1, ())
    write_manifest(workspace, 1)
    assert rounds.open_round(workspace, [], NOW).round == begun.round + 1


def test_a_round_with_nothing_to_do_is_forgotten_so_that_the_next_looks_at_the_inbox_afresh(
    workspace: Workspace,
) -> None:
    rounds.open_round(workspace, [], NOW)
    rounds.give_up(workspace)
    rounds.give_up(workspace)
    waiting = ["labels/000001-aaaaaaaa.parquet"]
    assert rounds.open_round(workspace, waiting, NOW).inbox == tuple(waiting)


# -- publishing ---------------------------------------------------------------------------------------------------


def staged(workspace: Workspace, **more: Any) -> Plan:
    content = workspace.root / "labeled.parquet"
    content.write_bytes(b"new labels")
    files = {"labeled.parquet": hashlib.sha256(b"new labels").hexdigest()}
    plan = Plan(round=1, message="round 1: 2 picked\n\nmanifest sha256:00", files=files, **more)
    rounds.stage(workspace, plan, {"labeled.parquet": content})
    content.unlink()
    return plan


STEPS = ("add", "push", "remote_tags", "commit", "tag", "push_git", "finish")


def test_a_publication_goes_its_steps_in_order_and_leaves_nothing_behind(workspace: Workspace) -> None:
    inbox = ["labels/000001-aaaaaaaa.parquet", "images/000003-cccccccc"]
    rounds.open_round(workspace, inbox, NOW)
    plan = staged(workspace, inbox=inbox, git_remote="origin", after={"run": "r"})
    assert rounds.pending_publication(workspace) == plan
    versions = Recording()
    steps: list[str] = []
    finished: list[Plan] = []
    assert rounds.carry_out(workspace, versions, finished.append, steps.append) == plan
    assert versions.calls == [
        ("add",),
        ("push",),
        ("remote_tags", "origin"),
        ("commit", ("data.dvc",), "round 1: 2 picked"),
        ("tag", "round/0001", plan.message),
        ("push_git", "origin", ("round/0001",)),
    ]
    assert finished == [plan]
    assert steps == ["moved", "added", "pushed", "committed", "tagged", "finished", "emptied"]
    assert (workspace.data / "labeled.parquet").read_bytes() == b"new labels"
    left = sorted(path.name for path in workspace.inbox.rglob("*") if not path.is_dir())
    assert left == ["000002-bbbbbbbb.parquet"]
    assert [path.name for path in workspace.state.iterdir()] == ["data.lock"]
    assert rounds.carry_out(workspace, versions) is None


@pytest.mark.parametrize("where", STEPS)
def test_a_publication_stopped_at_any_step_goes_on_and_ends_the_same(workspace: Workspace, where: str) -> None:
    plan = staged(workspace, inbox=["labels/000001-aaaaaaaa.parquet"], git_remote="origin")

    def finish(_: Plan) -> None:
        if where == "finish":
            raise Unavailable("finish is away")

    with pytest.raises(Unavailable, match=f"{where} is away"):
        rounds.carry_out(workspace, Recording(where), finish)
    assert rounds.pending_publication(workspace) == plan
    assert (workspace.inbox / "labels/000001-aaaaaaaa.parquet").exists()
    assert rounds.carry_out(workspace, Recording()) == plan
    assert (workspace.data / "labeled.parquet").read_bytes() == b"new labels"
    assert not (workspace.inbox / "labels/000001-aaaaaaaa.parquet").exists()
    assert rounds.pending_publication(workspace) is None


def test_without_s3_the_push_is_left_to_the_next_publication(workspace: Workspace) -> None:
    staged(workspace)
    versions = Recording()
    rounds.carry_out(workspace, versions, push=False)
    assert [name for name, *_ in versions.calls] == ["add", "defer_push", "commit", "tag"]


def test_a_file_changed_while_its_round_was_being_published_is_put_right(workspace: Workspace) -> None:
    staged(workspace)
    with pytest.raises(Unavailable):
        rounds.carry_out(workspace, Recording("add"))
    (workspace.data / "labeled.parquet").write_bytes(b"by hand")
    rounds.carry_out(workspace, Recording())
    assert (workspace.data / "labeled.parquet").read_bytes() == b"new labels"


def test_a_file_that_an_earlier_version_moved_into_place_is_taken_as_it_is(workspace: Workspace) -> None:
    staged(workspace)
    (workspace.state / "publish" / "data" / "labeled.parquet").replace(workspace.data / "labeled.parquet")
    rounds.carry_out(workspace, Recording())
    assert (workspace.data / "labeled.parquet").read_bytes() == b"new labels"


def test_a_staged_file_that_was_changed_stops_it_with_the_way_out(workspace: Workspace) -> None:
    staged(workspace)
    (workspace.state / "publish" / "data" / "labeled.parquet").write_bytes(b"by hand")
    with pytest.raises(UserError, match=r"is gone or was changed: `vabal abandon` drops this publication"):
        rounds.carry_out(workspace, Recording())


def test_a_staging_that_fails_leaves_nothing(workspace: Workspace) -> None:
    plan = Plan(round=1, message="round 1", files={})
    with pytest.raises(FileNotFoundError):
        rounds.stage(workspace, plan, {"labeled.parquet": workspace.root / "missing"})
    assert list(workspace.state.iterdir()) == []
    assert rounds.pending_publication(workspace) is None
