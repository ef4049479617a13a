"""Days with a real Label Studio, for `benchmarks.studio`: nights that ask and ask again, tokens that expire, and what
may go wrong there. Each scene yields what has to be so, and whether it is."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studio_server import ACCESS_S, Person, s3, second_person
from tests.support.faulty_server import FaultyServer, serving
from tests.support.small_backbones import small_backbone
from tests.support.small_rounds import first_round, learned
from vabal import pools, rounds
from vabal.adapters import label_studio, storage
from vabal.adapters.label_studio import client
from vabal.errors import UserError
from vabal.images.shards import for_browser
from vabal.labels import arrivals
from vabal.labels.export import write_images
from vabal.labels.names import blind_names
from vabal.labels.sync import SyncReport
from vabal.rounds import record, steps
from vabal.rounds.context import RoundContext, own_store
from vabal.workspace import Workspace

Check = tuple[str, bool]
MODEL = {"name": "vabal-classifier", "version": "7", "sha256": "0" * 64, "files": {}}
IMAGES, BUDGET = 60, 6


@dataclass
class Day:
    """A workspace whose first night has asked, the server, and who labels there."""

    place: Workspace
    server: str
    people: list[Person]
    night: RoundContext

    def sync(self, project: str | int, url: str | None = None, **settings: Any) -> SyncReport:
        told = {"url": url or self.server, "project": project, **settings}
        params = self.place.params({"labelling.studio": told})
        return label_studio.sync(self.place, params, datetime.now(UTC))

    def refused(self, project: str | int, url: str | None = None, **settings: Any) -> str:
        """What a sync says that fails; more than one line is none, nor is anything but a line for people."""
        try:
            self.sync(project, url, **settings)
        except UserError as error:
            return "" if "\n" in str(error) else str(error)
        return ""

    def project(self, title: str) -> int:
        found = self.people[0].call("GET", "projects", params={"title": title})["results"]
        return int(next(each["id"] for each in found if each["title"] == title))

    def tasks(self, title: str) -> list[dict[str, Any]]:
        return self.people[0].tasks(self.project(title))

    def pools(self) -> pools.Pools:
        return pools.load(self.place.data)

    def pictures(self) -> dict[str, bytes]:
        """What people may see of each open request, by blind name."""
        folder = self.place.state / "pictures"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        known = self.pools()
        files = write_images(known, self.place.data, pools.open_requests(known), folder)
        return {name: for_browser((folder / file).read_bytes(), most=None)[1] for name, file in files.items()}

    def publish(self) -> None:
        """The night's round, as it lies in `data/` once it is published."""
        now = datetime(2026, 1, self.night.round.round, 3, tzinfo=UTC)
        refs, none = learned(self.night), {"flow_run": None, "promotions": None}
        _, contents = record.assemble(self.night, refs, MODEL, mlflow_run="0" * 32, now=now, **none)
        for name, content in contents.items():
            path = self.place.data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            shutil.copyfile(content, path)
        arrivals.remove(self.place.inbox, self.night.round.inbox)

    def begin(self, rule: str) -> None:
        """The next night, with what is in the inbox."""
        begun = rounds.open_round(self.place, arrivals.pending(self.place.inbox), datetime.now(UTC))
        params = self.place.params({"labelling.consensus": rule})
        key = steps.intake(self.place, begun, rule)
        self.night = RoundContext(self.place, params, begun, own_store(self.place), key)

    def settled(self, rule: str) -> dict[str, str]:
        """Which label stands after an intake by that rule, by sample_id."""
        self.begin(rule)
        labeled = pools.load(self.night.view).labeled
        return dict(zip(labeled["sample_id"], labeled["label"], strict=True))


@contextmanager
def a_day(folder: Path, server: str) -> Iterator[Day]:
    labels = np.arange(IMAGES) % 3
    noise = np.random.default_rng(0).integers(0, 30, (IMAGES, 140, 140))
    grey = (labels[:, None, None] * 80 + noise).astype(np.uint8)
    settings = {f"backbone.{name}": value for name, value in small_backbone(folder).items()} | {
        "classifier.learner": "probe",
        "selection.strategy": "margin",
        "selection.budget": BUDGET,
        "labelling.ask_again": 0.5,
    }
    with first_round(folder, IMAGES, settings, arrays={"images": grey, "labels": labels}, initial=24) as night:
        people = [Person(server, os.environ[client.TOKEN]), second_person(server), second_person(server)]
        day = Day(night.workspace, server, people, night)
        day.publish()
        yield day


# -- what people see -----------------------------------------------------------------------------------------------


def pictures_and_guesses(day: Day) -> Iterator[Check]:
    """Images by upload and from S3, predictions only where they are asked for."""
    expected = day.pictures()
    for images, guesses in (("upload", False), ("s3", True)):
        title = f"{images} {day.place.identity[:8]}"
        report = day.sync(title, images=images, predictions=guesses)
        tasks = day.tasks(title)
        yield f"{images}: a task a request", report.made == len(expected) == len(tasks) == BUDGET
        names = {task["data"]["sample_id"]: task for task in tasks}
        seen = {name: day.people[1].sees(task["data"]["image"]) for name, task in names.items()}
        yield f"{images}: what people get is what we gave", seen == expected
        told = [prediction for task in tasks for prediction in task["predictions"]]
        yield f"{images}: predictions only if asked for", len(told) == (len(tasks) if guesses else 0)
        versions = {prediction["model_version"] for prediction in told}
        yield f"{images}: with model and score", versions <= {"vabal-classifier version 7"}
        yield f"{images}: a score is a probability", all(1 / 3 < prediction["score"] <= 1 for prediction in told)
        yield f"{images}: a second sync makes nothing", day.sync(title, images=images, predictions=guesses).made == 0
    keys = {Path(name).stem for name in storage.Bucket("vabal-labelling").objects()}
    yield "the bucket has blind names and no more", keys == {*expected, ".vabal-preflight"}


def opinions(day: Day) -> Iterator[Check]:
    """Two who differ, the next night's question, and the answers to it."""
    title = f"opinions {day.place.identity[:8]}"
    ada, bob, eve = day.people
    how: dict[str, Any] = {"images": "s3", "predictions": True}
    day.sync(title, **how)
    tasks = sorted(day.tasks(title), key=lambda task: str(task["data"]["sample_id"]))
    ids = {name: sample_id for sample_id, name in blind_names(day.pools().catalog).items()}
    torn, again, outvoted, agreed, *rest = [ids[task["data"]["sample_id"]] for task in tasks]
    for task, said in zip(tasks, [("0", "1"), ("1", "2"), ("2", "0"), ("1", "1"), *[("0",)] * len(rest)], strict=True):
        for person, label in zip((ada, bob), said, strict=False):
            person.says(task["id"], label)
    eve.says(tasks[2]["id"], "2")
    bob.says(tasks[2]["id"], "0")  # says it again, the newest of all: still one person of three
    taken = day.sync(title, **how).taken
    yield "each opinion came", (taken.labels, len(taken.disagreeing)) == (8 + len(rest) + 2, 3)
    yield "once", day.sync(title, **how).taken.name is None
    latest, most = day.settled("latest"), day.settled("majority")
    yield "latest: the newest stands", (latest[torn], latest[outvoted], latest[agreed]) == ("1", "0", "1")
    yield "majority: what more people say", (most[torn], most[outvoted], most[agreed]) == ("1", "2", "1")
    day.publish()
    asked = day.pools().asked_again
    disputed = set(asked.loc[asked["reason"] == "disputed", "sample_id"])
    yield "what is tied is asked again", disputed == {torn, again}
    made = day.sync(title, **how).made
    fresh = [task for task in day.tasks(title) if task["data"]["round"] == 2]
    names = [task["data"]["sample_id"] for task in fresh]
    yield "by a task of its own", made == len(fresh) == BUDGET and {torn, again} <= {ids[name] for name in names}
    yield "once a request", len(set(names)) == len(names) and day.sync(title, **how).made == 0
    shapes = {(*sorted(task["data"]), len(task["predictions"]), len(task["annotations"])) for task in fresh}
    yield "no task stands out", shapes == {("image", "round", "sample_id", 1, 0)}
    numbers = {ids[task["data"]["sample_id"]]: task["id"] for task in fresh}
    eve.says(numbers[torn], "0")
    bob.says(numbers[again], "2")  # the same once more
    taken = day.sync(title, **how).taken
    yield "its answers came", taken.labels == 2
    most = day.settled("majority")
    yield "and settle it", (most[torn], most[again]) == ("0", "2")
    open_now = set(pools.open_requests(pools.load(day.night.view))["sample_id"])
    yield "both requests are answered", not {torn, again} & open_now
    weighed = day.settled("crowdlab")
    yield "crowdlab: as all agree", weighed[agreed] == "1" and {torn, again} <= set(weighed)


# -- tokens and time -----------------------------------------------------------------------------------------------


def tokens(day: Day) -> Iterator[Check]:
    """A personal token through a sync that is longer than an access token lives; then none that is any good."""
    title = f"tokens {day.place.identity[:8]}"
    renewed = 0

    def fault_of(_method: str, path: str) -> str:
        nonlocal renewed
        renewed += "token/refresh" in path
        return "late"

    someone = second_person(day.server)
    personal = someone.personal_token()
    with serving(FaultyServer(fault_of, day.server)) as slow, a_token(personal):
        begun = time.monotonic()
        made = day.sync(title, slow.address).made
        took = time.monotonic() - begun
    yield f"{took:.0f} s with tokens for {ACCESS_S} s, renewed {renewed} times", took > 2 * ACCESS_S and renewed >= 2
    yield "all tasks were made", made == len(day.tasks(title)) == BUDGET
    someone.call("POST", "token/blacklist/", json={"refresh": personal})
    with a_token(personal):
        yield "revoked", "refuses the token of LABEL_STUDIO_API_KEY" in day.refused(title)
    with a_token("0" * 40):
        yield "wrong", "refuses the token of LABEL_STUDIO_API_KEY" in day.refused(title)


def slowness(day: Day) -> Iterator[Check]:
    """A server that takes its time: what was done stays."""
    title = f"slow {day.place.identity[:8]}"
    with serving(FaultyServer(lambda _method, _path: "late", day.server)) as slow:
        begun = time.monotonic()
        said = day.refused(title, slow.address, minutes=0.3)
        took = time.monotonic() - begun
    there = len(day.tasks(title))
    yield f"ended after {took:.0f} s: {said}", 18 <= took < 25 and "not done after 0.3 minutes" in said
    yield "it told what it did", f"(before that: {there} of {BUDGET} tasks made)" in said and 0 < there < BUDGET
    yield "the next one does the rest", day.sync(title).made == BUDGET - there


# -- what may go wrong ---------------------------------------------------------------------------------------------


def troubles(day: Day) -> Iterator[Check]:
    """Projects, storages, buckets and tasks that somebody deletes, and servers that go."""
    title, expected = f"trouble {day.place.identity[:8]}", day.pictures()
    ada = day.people[0]
    day.sync(title, images="s3")
    number = day.project(title)

    def as_it_should_be(made: int) -> bool:
        again = day.sync(title, images="s3")
        tasks = {task["data"]["sample_id"]: task["data"]["image"] for task in day.tasks(title)}
        return again.made == made and {name: ada.sees(image) for name, image in tasks.items()} == expected

    [source] = ada.call("GET", "storages/s3/", params={"project": number})
    ada.call("DELETE", f"storages/s3/{source['id']}")
    yield "a storage that was deleted is made again", as_it_should_be(0)
    bucket = storage.Bucket("vabal-labelling")
    for name in bucket.objects():
        bucket.s3.delete_object(Bucket=bucket.bucket, Key=name)
    yield "images that were deleted come back", as_it_should_be(0)
    [task, *_] = day.tasks(title)
    ada.call("DELETE", f"tasks/{task['id']}")
    yield "so does a task", as_it_should_be(1)
    names = ("LABEL_STUDIO_S3_SECRET_ACCESS_KEY", "LABEL_STUDIO_S3_ACCESS_KEY_ID")
    with _set(names[0], "not-" * 8):
        said = day.refused(title, images="s3")
        yield f"wrong keys: {said}", "cannot use s3://vabal-labelling/" in said and "not-not-" not in said
    with _set(names[0], ""):
        yield "half a pair", "only one of" in day.refused(title, images="s3")
    with _set("LABEL_STUDIO_S3_ENDPOINT", "http://127.0.0.1:9"):
        yield "S3 where there is none", "cannot use s3://" in day.refused(title, images="s3")
    yield "the pools' bucket", "holds the pools" in day.refused(title, images="s3", bucket="vabal")
    with _set("AWS_ENDPOINT_URL", "http://127.0.0.1:9"):
        yield "no S3 here", "no S3 server at" in day.refused(title, images="s3")
    yield "all is well after that", as_it_should_be(0)
    ada.call("DELETE", f"projects/{number}")
    yield "a project that was deleted, by number", f"has no project {number}" in day.refused(number)
    yield "and by title: made again", as_it_should_be(BUDGET)
    deleted = f"deleted {title}"
    for other, deed in (
        (deleted, lambda: ada.call("DELETE", f"projects/{day.project(deleted)}")),
        (f"gone {title}", None),
    ):
        with _cut_at(day.server, 4, deed) as address:
            said = day.refused(other, address)
        yield f"{'deleted' if deed else 'gone'} in the middle: {said}", "(before that: " in said
        yield "the next one does the rest", day.sync(other).requests == len(day.tasks(other)) == BUDGET


@contextmanager
def _cut_at(server: str, imports: int, deed: Callable[[], object] | None) -> Iterator[str]:
    """The server's address until that many calls made something; then the deed, or it is gone."""
    seen = 0

    def fault_of(method: str, path: str) -> str:
        nonlocal seen
        seen += method == "POST" and path.partition("?")[0].endswith("/import")
        if seen == imports and deed is not None:
            seen += 1
            deed()
        return "reset" if seen >= imports and deed is None else ""

    with serving(FaultyServer(fault_of, server)) as between:
        yield between.address


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def a_token(token: str) -> Any:
    return _set(client.TOKEN, token)


def play(folder: Path, server: str) -> list[str]:
    """All scenes; what was not so."""
    wrong = []
    with a_day(folder, server) as day, s3(folder):  # a first round is made without servers
        for scene in (pictures_and_guesses, tokens, slowness, troubles, opinions):
            for what, is_so in scene(day):
                print(f"{scene.__name__}: {'' if is_so else 'NOT SO: '}{what}", flush=True)
                wrong += [] if is_so else [f"{scene.__name__}: {what}"]
    return wrong
