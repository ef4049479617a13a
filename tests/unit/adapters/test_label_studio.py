"""Requests become tasks of Label Studio and answers come back, whatever dies or breaks off meanwhile."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.support.small_buckets import s3_server
from tests.support.small_studio import ACCESS, PERSONAL, TOKEN, SmallStudio, small_studio
from vabal import pools
from vabal.adapters import label_studio, storage
from vabal.adapters.label_studio import client
from vabal.adapters.versioning import Versioning
from vabal.cli import app
from vabal.errors import Unavailable, UserError
from vabal.labels import answers as files
from vabal.labels import arrivals
from vabal.labels.names import blind_names
from vabal.labels.sync import Guess, SyncReport
from vabal.rounds.initial import initialise
from vabal.settings.models import StudioSettings
from vabal.workspace import Workspace

S3 = {"images": "s3"}
CLASSES = ('a "b" & <c>', "d")
NOW = datetime(2026, 11, 27, tzinfo=UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace without labels: round 0 asks for all of its nine images, those of the holdout too."""
    folder = tmp_path_factory.mktemp("studio")
    (folder / "images").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    Image.new("L", (1500, 1100), 9).save(folder / "images" / "large.png")
    with pytest.MonkeyPatch.context() as without_servers:
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"):
            without_servers.delenv(name, raising=False)
        (folder / "workspace").mkdir()
        initialise(
            folder / "workspace",
            source=f"folder:{folder / 'images'}",
            imbalance=None,
            initial=7,
            holdout=0.2,
            seed=5,
            classes=list(CLASSES),
            name="parts",
            settings={"classifier.learner": "scratch"},
            versions=Versioning(folder / "workspace"),
            prepare=lambda _storage: None,
        )
    return folder / "workspace"


@pytest.fixture
def studio() -> Iterator[SmallStudio]:
    with small_studio() as server:
        yield server


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[storage.Bucket]:
    """What Label Studio reads from, beside that of the pools."""
    with s3_server() as address:
        keys = {"AWS_ACCESS_KEY_ID": "writer", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": address}
        keys |= {"LABEL_STUDIO_S3_ACCESS_KEY_ID": "reader", "LABEL_STUDIO_S3_SECRET_ACCESS_KEY": "not for everybody"}
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        yield storage.Bucket("vabal-labelling", "parts")


@pytest.fixture
def place(made: Path, studio: SmallStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv(client.TOKEN, TOKEN)
    monkeypatch.setattr(client, "PAUSES_S", (0.0, 0.0))
    shutil.copytree(made, tmp_path / "workspace")
    text = (made / "params.yaml").read_text()
    assert "  studio: null" in text
    (tmp_path / "workspace" / "params.yaml").write_text(
        text.replace("  studio: null", f"  studio: {{url: {studio.url}}}")
    )
    return Workspace(tmp_path / "workspace")


def synced(place: Workspace, settings: dict[str, Any] | None = None, *, everything: bool = False) -> SyncReport:
    usual = place.params().labelling.studio
    told = None if usual is None else {"labelling.studio": usual.model_dump() | (settings or {})}
    return label_studio.sync(place, place.params(told), NOW, everything=everything)


def requested(place: Workspace) -> dict[str, str]:
    """The open requests: ids by blind name."""
    known = pools.load(place.data)
    events, _ = arrivals.read(place.inbox, arrivals.pending(place.inbox))
    after, _ = pools.apply_labels(known, events, 1)
    blind = blind_names(known.catalog)
    return {blind[sample_id]: sample_id for sample_id in pools.open_requests(after)["sample_id"]}


def opinions(place: Workspace) -> list[tuple[str, str | None, str]]:
    """Every opinion in the inbox, in order."""
    events, _ = arrivals.read(place.inbox, arrivals.pending(place.inbox))
    columns = [events[name].astype(object).where(events[name].notna(), None) for name in ("sample_id", "label")]
    return list(zip(*columns, events["annotator"], strict=True))


# -- out -----------------------------------------------------------------------------------------------------------


def test_each_open_request_gets_one_task_in_no_order_of_the_pool(place: Workspace, studio: SmallStudio) -> None:
    report = synced(place)
    assert (report.made, report.requests) == (9, 9)
    assert studio.names() == sorted(requested(place))
    [project] = studio.projects.values()
    assert project["title"] == "parts"
    assert studio.answer("GET", f"projects/{project['id']}", {}, None)[1]["parsed_label_config"]["label"][
        "labels"
    ] == list(CLASSES)
    assert all(set(task["data"]) == {"image", "sample_id", "round"} for task in studio.tasks.values())
    assert all(task["predictions"] == [] for task in studio.tasks.values())
    again = synced(place)
    assert (again.made, len(studio.tasks), len(studio.files), len(studio.projects)) == (0, 9, 9, 1)
    assert again.lines() == [f"{studio.url}/projects/{project['id']}: 0 tasks made; 9 requests are open"]
    assert not (place.state / "sync").exists()


def test_images_travel_bare_and_as_large_as_they_are(place: Workspace, studio: SmallStudio, tmp_path: Path) -> None:
    synced(place)
    sizes = []
    for file in studio.files.values():
        (tmp_path / "file").write_bytes(bytes.fromhex(file["content"]))
        with Image.open(tmp_path / "file") as image:
            sizes.append(image.size)
            assert image.info == {}
    assert max(sizes) == (1500, 1100)
    assert len(set(sizes)) == 2  # the others are enlarged by whole pixels
    images = {task["data"]["image"] for task in studio.tasks.values()}
    assert images == {f"/data/{file['file']}" for file in studio.files.values()}


def test_a_request_that_was_answered_elsewhere_gets_no_task(place: Workspace, studio: SmallStudio) -> None:
    [name, other, *_] = sorted(requested(place))
    (place.root / "some.csv").write_text(f"sample_id,label,annotator\n{name},d,ada\n{other},,ada\n")
    files.import_labels(place.inbox, pools.load(place.data), place.root / "some.csv", NOW, reject=True)
    assert synced(place).made == 7
    assert not {name, other} & set(studio.names())


def test_a_deleted_task_of_an_open_request_comes_again_and_uses_the_file_that_is_there(
    place: Workspace, studio: SmallStudio
) -> None:
    synced(place)
    del studio.tasks[min(studio.tasks)]
    assert synced(place).made == 1
    assert len(studio.files) == 9
    assert sorted(studio.names()) == sorted(requested(place))


def test_a_project_of_somebodys_own_keeps_its_interface_and_gets_the_classes_that_it_lacks(
    place: Workspace, studio: SmallStudio
) -> None:
    own = (
        '<View>\n  <Image name="image" value="$image"/>\n  <Choices name="label" toName="image">\n'
        '    <Choice value="d" hotkey="9"/>\n  </Choices>\n</View>'
    )
    studio.body = {"title": "parts", "label_config": own}
    studio.answer("POST", "projects", {}, studio.body)
    synced(place)
    [project] = studio.projects.values()
    assert project["label_config"] == own.replace(
        "\n  </Choices>", "\n    <Choice value='a \"b\" &amp; &lt;c&gt;'/>\n  </Choices>"
    )


def test_a_project_with_another_question_is_refused_in_one_line(place: Workspace, studio: SmallStudio) -> None:
    config = '<View><Choices name="quality" toName="image"><Choice value="good"/></Choices></View>'
    studio.answer("POST", "projects", {}, {"title": "parts", "label_config": config})
    with pytest.raises(UserError, match=r"has no choices named label: paste label_config\.xml"):
        synced(place)
    assert studio.tasks == {}


def test_where_every_request_is_answered_a_sync_has_nothing_to_do(place: Workspace, studio: SmallStudio) -> None:
    synced(place)
    for name in studio.names():
        studio.people_say(name, "d")
    report = synced(place)
    assert (report.requests, report.made, report.taken.labels) == (0, 0, 9)


def test_images_lie_in_a_bucket_of_their_own_that_the_project_has_a_storage_for(
    place: Workspace, studio: SmallStudio, bucket: storage.Bucket
) -> None:
    assert synced(place, S3).made == 9
    addresses = {task["data"]["image"] for task in studio.tasks.values()}
    assert addresses == {f"s3://vabal-labelling/parts/{name}.png" for name in requested(place)}
    pictures = {name: bucket.read(name) for name in bucket.objects() if name.startswith("img-")}
    assert len(pictures) == 9
    assert studio.files == {}
    [source] = studio.storages.values()
    told = {"bucket": "vabal-labelling", "prefix": "parts", "presign": True, "synchronizable": False}
    told |= {"s3_endpoint": os.environ["AWS_ENDPOINT_URL"], "aws_access_key_id": "reader"}
    assert {name: source[name] for name in told} == told
    del studio.tasks[min(studio.tasks)]
    for name in pictures:
        bucket.s3.delete_object(Bucket=bucket.bucket, Key=f"parts/{name}")
    assert synced(place, S3).made == 1
    assert {name: bucket.read(name) for name in bucket.objects() if name.startswith("img-")} == pictures
    assert (len(studio.tasks), len(studio.storages)) == (9, 1)
    studio.storages.clear()
    assert synced(place, S3).made == 0
    assert len(studio.storages) == 1
    kept = "".join(path.read_text(errors="replace") for path in place.root.rglob("*") if path.is_file())
    assert "not for everybody" not in kept


def test_a_storage_gets_new_keys_and_one_that_does_not_work_is_one_line_without_them(
    place: Workspace, studio: SmallStudio, bucket: storage.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced(place, S3)
    studio.people_say(min(requested(place)), "d")
    [source] = studio.storages.values()
    [(hidden, first)] = [(name, value) for name, value in source.items() if name.endswith("secret_access_key")]
    with monkeypatch.context() as renewed:
        renewed.setenv("LABEL_STUDIO_S3_SECRET_ACCESS_KEY", "a newer one")
        source["title"] = "somebody's"
        synced(place, S3)
        assert source[hidden] == first
        source["title"] = "VaB-AL: images of requests"
        synced(place, S3)
        assert source[hidden] == "a newer one"
    studio.people_say(max(requested(place)), "d")
    monkeypatch.setattr(studio, "_restore", lambda _number: (400, {"detail": f"no: {studio.body}"}))
    with pytest.raises(Unavailable, match=r"cannot use s3://vabal-labelling/parts \(400: .*keys that may list") as said:
        synced(place, S3)
    assert "not for everybody" not in str(said.value)
    assert str(said.value).endswith("(before that: 1 labels and 0 rejections taken in)")
    assert len(opinions(place)) == 2
    with pytest.raises(UserError, match=r"labelling\.studio\.bucket: `vabal` holds the pools"):
        synced(place, {**S3, "bucket": "vabal"})
    monkeypatch.setenv("LABEL_STUDIO_S3_ACCESS_KEY_ID", "")
    with pytest.raises(UserError, match="only one of LABEL_STUDIO_S3_ACCESS_KEY_ID"):
        synced(place, S3)


# -- in ------------------------------------------------------------------------------------------------------------


def test_what_people_say_edit_skip_and_delete_is_taken_in_once(place: Workspace, studio: SmallStudio) -> None:
    synced(place)
    ids = requested(place)
    first, second, third, fourth, *_ = names = sorted(ids)
    said = studio.people_say(first, "d", person=3)
    gone = studio.people_say(second, "d")
    studio.people_say(third, None, skipped=True)
    studio.people_say(fourth, "d")
    taken = synced(place).taken
    assert (taken.labels, taken.rejections) == (3, 1)
    assert opinions(place) == [
        (ids[first], "d", "label-studio-3"),
        (ids[second], "d", "label-studio-1"),
        (ids[third], None, "label-studio-1"),
        (ids[fourth], "d", "label-studio-1"),
    ]
    before = (opinions(place), arrivals.pending(place.inbox))
    for everything in (False, True):
        assert synced(place, everything=everything).taken.name is None
    assert (opinions(place), arrivals.pending(place.inbox)) == before
    studio.people_edit(said, CLASSES[0])
    studio.people_delete(gone)
    [answered] = [number for number, task in studio.tasks.items() if task["data"]["sample_id"] == fourth]
    del studio.tasks[answered]
    report = synced(place)
    assert report.taken.changed == ((ids[first], "d", CLASSES[0]),)
    assert report.withdrawn == (ids[second],)
    assert report.made == 0  # the task that is gone was answered
    assert opinions(place)[4:] == [(ids[first], CLASSES[0], "label-studio-3")]
    assert len(requested(place)) == len(names) - 4


def test_an_export_of_the_same_project_brings_nothing_that_a_sync_brought(
    place: Workspace, studio: SmallStudio
) -> None:
    synced(place)
    for name in sorted(requested(place))[:3]:
        studio.people_say(name, "d")
    synced(place)
    (place.root / "export.json").write_text(json.dumps([*studio.tasks.values()]))
    report = files.import_labels(place.inbox, pools.load(place.data), place.root / "export.json", NOW)
    assert (report.name, report.repeated) == (None, 3)


def test_what_the_pools_do_not_know_is_left_out_told_and_looked_at_again(place: Workspace, studio: SmallStudio) -> None:
    synced(place)
    first, second, third, *_ = sorted(requested(place))
    number = studio.people_say(first, "no class")
    studio.people_say(second, "d")
    studio.answer("POST", f"projects/{min(studio.projects)}/import", {}, [{"data": {"text": "of somebody else"}}])
    report = synced(place)
    assert report.taken.labels == 1
    assert [why for _, why in report.taken.wrong] == [
        "label 'no class' is no class: `vabal classes add 'no class'` makes it one",
        "no data.sample_id: not a task that `vabal labels export` wrote",
    ]
    assert any("2 are wrong and left out" in line for line in report.lines())
    for _ in range(3):
        studio.people_say(third, "d", person=next(studio.numbers))
    synced(place)
    studio._annotation(number)[1]["result"][0]["value"]["choices"] = ["d"]  # the class is known by now: no time changed
    assert synced(place).taken.labels == 1


def test_only_what_was_changed_lately_is_read_again(place: Workspace, studio: SmallStudio) -> None:
    synced(place)
    names = sorted(requested(place))
    studio.people_say(names[0], "d")
    synced(place)
    studio.people_say(names[1], "d")
    seen: list[int] = []
    real = studio._task_list

    def counted() -> tuple[int, Any]:
        code, said = real()
        if studio.query.get("fields") == "all":
            seen.append(len(said["tasks"]))
        return code, said

    studio._task_list = counted  # type: ignore[method-assign]
    synced(place)
    assert seen == [2, 0]  # of 9
    synced(place, everything=True)
    assert seen[2:] == [9, 0]


# -- faults --------------------------------------------------------------------------------------------------------


def test_an_answer_that_is_dropped_costs_a_look_and_makes_nothing_twice(place: Workspace, studio: SmallStudio) -> None:
    chance = random.Random(3)  # noqa: S311 -- faults, the same ones each time
    studio.fault = lambda method, path: chance.choice(["before", "after", "500", *[""] * 9])
    for _ in range(8):
        try:
            synced(place)
        except Unavailable as error:
            assert "\n" not in str(error)
    studio.fault = lambda method, path: ""
    synced(place)
    assert sorted(studio.names()) == sorted(requested(place))
    assert len(studio.files) == 9
    assert len(studio.projects) == 1


def test_a_sync_ends_in_time_keeps_what_it_did_and_the_next_goes_on(
    place: Workspace, studio: SmallStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = 0.0

    def slow(method: str, path: str) -> str:
        nonlocal later
        later += 600.0 * (method == "POST" and path.endswith("/import"))
        return ""

    monkeypatch.setattr(client, "monotonic", lambda: time.monotonic() + later)
    studio.fault = slow
    with pytest.raises(Unavailable, match=r"not done after 60 minutes .*\(before that: 2 of 9 tasks made\)$"):
        synced(place)
    made = len(studio.tasks)
    assert made == 3  # of the last one no answer was waited for
    assert synced(place, {"minutes": 1000.0}).made == 6


def test_a_personal_token_is_renewed_whenever_what_it_bought_expires(
    place: Workspace, studio: SmallStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(client.TOKEN, PERSONAL)
    assert synced(place).made == 9
    assert studio.calls.count("POST token/refresh") >= len(studio.calls) // (ACCESS + 2) > 3
    monkeypatch.setenv(client.TOKEN, "some.revoked.token")
    with pytest.raises(Unavailable, match=r"refuses the token of LABEL_STUDIO_API_KEY \(POST token/refresh\)"):
        synced(place)


def test_an_answer_that_is_dropped_is_not_taken_for_an_earlier_request(studio: SmallStudio, place: Workspace) -> None:
    desk = label_studio.LabelStudio(StudioSettings(url=studio.url, project="again"), "parts")
    desk.open(CLASSES)
    desk.ask("img-1", 1, b"picture", "image/png", None)
    dropped: list[str] = []

    def fault(method: str, path: str) -> str:
        if method == "POST" and path.endswith("/import") and not dropped:
            dropped.append(path)
            return "before"
        return ""

    studio.fault = fault
    desk.ask("img-1", 2, b"picture", "image/png", None)
    desk.close()
    assert dropped
    assert [task["data"]["round"] for task in studio.tasks.values()] == [1, 2]


def test_killed_before_and_after_any_call_the_next_run_ends_in_the_same_state(
    place: Workspace, studio: SmallStudio
) -> None:
    kills = 0
    while _killed_at(place, studio, kills % 13, "after" if kills % 2 else "before"):
        kills += 1
    synced(place)
    names = sorted(requested(place))
    assert sorted(studio.names()) == names
    assert (len(studio.files), len(studio.projects)) == (9, 1)
    assert kills >= 12
    expected = []
    for round_number, name in enumerate(names[:3]):
        studio.people_say(name, "d", person=round_number)
        expected.append((requested(place)[name], "d", f"label-studio-{round_number}"))
        assert all(_killed_at(place, studio, call, "after") for call in (2, 3, 4))
        synced(place)
    assert sorted(opinions(place)) == sorted(expected)


def _killed_at(place: Workspace, studio: SmallStudio, call: int, when: str) -> bool:
    """Whether a sync in a process of its own was killed at that call of its."""
    studio.calls.clear()
    child = os.fork()
    if not child:
        try:
            synced(place)
        finally:
            os._exit(0)

    def fault(_method: str, _path: str) -> str:
        if len(studio.calls) <= call:
            return ""
        os.kill(child, signal.SIGKILL)
        return when

    studio.fault = fault
    _, status = os.waitpid(child, 0)
    studio.fault = lambda _method, _path: ""
    return os.WIFSIGNALED(status)


def test_tasks_that_stand_twice_are_dropped_unless_somebody_has_begun_them(
    place: Workspace, studio: SmallStudio
) -> None:
    synced(place)
    first, second, third, *_ = sorted(requested(place))
    twins = [
        {"data": task["data"]} for task in studio.tasks.values() if task["data"]["sample_id"] in (first, second, third)
    ]
    studio.answer("POST", f"projects/{min(studio.projects)}/import", {}, [*twins, {"data": {"sample_id": first}}])
    older, younger = [[n for n, t in studio.tasks.items() if t["data"]["sample_id"] == second][k] for k in (0, 1)]
    studio.tasks[younger]["drafts"].append({"result": []})
    for task in [task for task in studio.tasks.values() if task["data"]["sample_id"] == third]:
        task["drafts"].append({"result": []})
    assert synced(place).dropped == 2
    assert older not in studio.tasks
    assert {name: studio.names().count(name) for name in (first, second, third)} == {first: 2, second: 1, third: 2}


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_server_that_is_away_is_one_line_and_the_command_fails(place: Workspace, studio: SmallStudio) -> None:
    studio.shutdown()
    studio.server_close()
    done = CliRunner().invoke(app.app, ["-C", str(place.root), "labels", "sync"])
    assert isinstance(done.exception, Unavailable)
    assert str(done.exception).startswith(f"Label Studio does not answer at {studio.url} ([Errno 111]")


def test_tokens_projects_and_servers_that_are_wrong_are_told_in_one_line(
    place: Workspace, studio: SmallStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(client.TOKEN, "wrong")
    with pytest.raises(Unavailable, match="refuses the token of LABEL_STUDIO_API_KEY"):
        synced(place)
    monkeypatch.delenv(client.TOKEN)
    with pytest.raises(UserError, match="no token for Label Studio at"):
        synced(place)
    monkeypatch.setenv(client.TOKEN, TOKEN)
    desk = label_studio.LabelStudio(StudioSettings(url=studio.url, project=77), "parts")
    with pytest.raises(UserError, match=r"has no project 77 \(labelling\.studio\.project\)"):
        desk.open(CLASSES)
    desk.close()
    monkeypatch.setattr(studio, "answer", lambda *_: (200, ["something else"]))
    with pytest.raises(Unavailable, match=r"does not answer as Label Studio 1\.x does"):
        synced(place)


def test_without_a_server_in_the_settings_the_command_says_what_to_write(made: Path) -> None:
    with pytest.raises(UserError, match=r"write `studio: \{url: https://...\}` below labelling"):
        synced(Workspace(made))


def test_predictions_go_along_only_where_they_are_asked_for(place: Workspace, studio: SmallStudio) -> None:
    desk = label_studio.LabelStudio(StudioSettings(url=studio.url, project="guessed"), "parts")
    desk.open(CLASSES)
    desk.ask("img-1", 3, b"picture", "image/png", Guess("d", 0.75, "parts-vabal-classifier version 3"))
    desk.close()
    [task] = studio.tasks.values()
    assert task["data"]["round"] == 3
    region = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["d"]}}
    assert task["predictions"] == [
        {"model_version": "parts-vabal-classifier version 3", "score": 0.75, "result": [region]}
    ]
