"""`python -m benchmarks.studio FOLDER [--faults 200] [--seed 0]`: syncs with a real Label Studio, disturbed.

FOLDER has an environment with the package label-studio (`make test-studio` makes it). A server of its own starts there,
and one workspace after the other syncs with a project of its own: a sync is killed at a random moment, or answers of
the server are dropped on their way, before or after it did what it was asked for. People label, correct, skip and
delete between. In the end a last sync runs, and nothing may be lost or stand twice. Every other project has its images
in S3, and a personal token in the place of a legacy one. Before that come the days of `benchmarks.studio_scenes`.
Fails if something is not as it has to be.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import studio_scenes
from benchmarks.studio_scenes import a_token
from benchmarks.studio_server import Person, s3
from benchmarks.studio_server import label_studio as label_studio_server
from tests.support.faulty_server import FaultyServer, serving
from vabal import pools
from vabal.adapters import label_studio, storage
from vabal.adapters.label_studio import client
from vabal.adapters.versioning import Versioning
from vabal.errors import UserError
from vabal.labels import arrivals
from vabal.labels.names import blind_names
from vabal.rounds.initial import initialise
from vabal.workspace import Workspace

CLASSES = ("crack", "fray", "a & b")
IMAGES = 12
A_PROJECT = 25  # faults of one workspace


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studio", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "PREFECT_", "GIT_"))]:
        del os.environ[name]
    chance, done, wrong = random.Random(chosen.seed), Counter[str](), list[str]()  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="studio-") as name, ExitStack() as stack:
        folder = Path(name)
        base = _workspace(folder)
        with label_studio_server(chosen.folder, folder) as server:
            (folder / "day").mkdir()
            wrong += studio_scenes.play(folder / "day", server)
            tokens = [os.environ[client.TOKEN], Person(server, os.environ[client.TOKEN]).personal_token()]
            stack.enter_context(s3(folder))  # a first round is made without it
            for number in range(-(-chosen.faults // A_PROJECT)):
                settings = {"url": server, "project": f"{folder.name} {number}"}
                settings |= {"images": "s3", "bucket": f"labelling-{number}"} if number % 2 else {}
                place = _copy(base, folder, number)
                project = Project(place, Person(server, tokens[0]), settings, tokens[number % 2], chance)
                project.go_through(min(A_PROJECT, chosen.faults - number * A_PROJECT), done)
                found = project.broken(done)
                wrong += found
                print(f"project {number}: {dict(done)} {'; '.join(found)}", flush=True)
    print(
        f"{done['kill']} kills and {done['drop']} syncs with dropped answers over {done['project']} projects: "
        f"{done['task']} tasks, {done['opinion']} opinions on {done['image']} images; {len(wrong)} lost or doubled"
    )
    return 1 if wrong else 0


@dataclass
class Project:
    """A workspace and its project, what people said there, and what a sync has to come to."""

    place: Workspace
    person: Person
    settings: dict[str, str]
    token: str
    chance: random.Random
    said: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # by blind name: time and label, the last
    ever: set[tuple[str, str | None, str]] = field(default_factory=set)
    seconds: float = 3.0

    def go_through(self, faults: int, done: Counter[str]) -> None:
        """Syncs until so many were killed or had answers dropped; people do something between, once there are tasks."""
        while faults:
            what = self.chance.choice(["kill", "drop"])
            if self._killed() if what == "kill" else self._dropped():
                done[what] += 1
                faults -= 1
            for _ in range(self.chance.randrange(3)):
                self._people(done)

    def _sync(self, url: str) -> None:
        params = self.place.params({"labelling.studio": self.settings | {"url": url}})
        with a_token(self.token):
            label_studio.sync(self.place, params, datetime.now(UTC))

    def _killed(self) -> bool:
        """Whether a sync was killed before its end."""
        child, begun = self._child(self.settings["url"]), time.monotonic()
        time.sleep(self.chance.random() * self.seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            self.seconds = max(0.3, time.monotonic() - begun)
        return os.WIFSIGNALED(status)

    def _dropped(self) -> bool:
        """Whether an answer was dropped on its way to a sync, which then may fail in one line."""
        dropped = 0

        def fault_of(_method: str, _path: str) -> str:
            nonlocal dropped
            fault = self.chance.choice(["reset", "cut", "503", *[""] * 12])
            dropped += bool(fault)
            return fault

        with serving(FaultyServer(fault_of, self.settings["url"])) as between:
            _, status = os.waitpid(self._child(between.address), 0)
        assert os.waitstatus_to_exitcode(status) in (0, 1), "a sync that met a fault ended in neither way"
        return dropped > 0

    def _child(self, url: str) -> int:
        child = os.fork()
        if not child:
            code = 70
            try:
                self._sync(url)
                code = 0
            except UserError:
                code = 1
            finally:
                os._exit(code)
        return child

    # -- people ------------------------------------------------------------------------------------------------------

    def _people(self, done: Counter[str]) -> None:
        """One of them labels, corrects, skips or deletes."""
        tasks = self.tasks()
        if not tasks:
            return
        task = self.chance.choice(tasks)
        annotations = task["annotations"]
        if self.chance.random() < 0.1 and (not annotations or task["data"]["sample_id"] in self._taken()):
            self.person.call("DELETE", f"tasks/{task['id']}")
            done["deleted"] += 1
            return
        label = self.chance.choice([*CLASSES, None]) if not annotations else self.chance.choice(CLASSES)
        value = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
        body = {"result": [value] if label else [], "was_cancelled": label is None}
        path = f"annotations/{annotations[0]['id']}" if annotations else f"tasks/{task['id']}/annotations"
        item = self.person.call("PATCH" if annotations else "POST", f"{path}/", json=body)
        name = task["data"]["sample_id"]
        if name in self.said and not annotations:
            done["again"] += 1
        self.said[name] = (item["updated_at"], label)
        self.ever.add((name, label, item["updated_at"]))

    def _taken(self) -> set[str]:
        """The images whose last opinion a sync has brought: what is deleted before is nobody's label."""
        events, _ = arrivals.read(self.place.inbox, arrivals.pending(self.place.inbox))
        times = {_moment(time.isoformat()) for time in events["labeled_at"]}
        return {name for name, (time, _) in self.said.items() if _moment(time) in times}

    def tasks(self) -> list[dict[str, Any]]:
        """All tasks of all projects of that title, with annotations."""
        return [task for project in self._projects() for task in self.person.tasks(project["id"])]

    def _projects(self) -> list[dict[str, Any]]:
        asked = {"title": self.settings["project"], "page_size": 100}
        found: list[dict[str, Any]] = self.person.call("GET", "projects", params=asked)["results"]
        return found

    def _files(self) -> int:
        """How many images lie in the bucket, or were uploaded."""
        if "bucket" in self.settings:
            return sum("img-" in name for name in storage.Bucket(self.settings["bucket"]).objects())
        path = f"projects/{self._projects()[0]['id']}/file-uploads"
        return len(self.person.call("GET", path, params={"all": "true"}))

    # -- what must be so ---------------------------------------------------------------------------------------------

    def broken(self, done: Counter[str]) -> list[str]:
        """What is lost or stands twice, after a sync that nothing disturbs."""
        self._sync(self.settings["url"])
        known = pools.load(self.place.data)
        blind = blind_names(known.catalog)
        events, _ = arrivals.read(self.place.inbox, arrivals.pending(self.place.inbox))
        after, _ = pools.apply_labels(known, events, 1)
        tasks = Counter(task["data"]["sample_id"] for task in self.tasks())
        labels = events["label"].astype(object).where(events["label"].notna(), None)
        times = [time.isoformat() for time in events["labeled_at"]]
        told = Counter(zip(events["sample_id"].map(blind), labels, map(_moment, times), strict=True))
        ever = {(name, label, _moment(time)) for name, label, time in self.ever}
        stands = pools.standing(after.label_events)
        stands_label = stands["label"].astype(object).where(stands["label"].notna(), None)
        now = dict(zip(stands["sample_id"].map(blind), stands_label, strict=True))
        wanted = {name: label for name, (_, label) in self.said.items()}
        requests = {blind[sample_id] for sample_id in pools.open_requests(after)["sample_id"]}
        done.update(project=1, task=sum(tasks.values()), opinion=len(told), image=len(wanted))
        found = {
            "projects": len(self._projects()) != 1,
            "tasks that stand twice": any(count > 1 for count in tasks.values()),
            "requests without a task": bool(requests - set(tasks)),
            "files that stand twice": self._files() != IMAGES,
            "opinions doubled": any(count > 1 for count in told.values()),
            "opinions that nobody had": bool(set(told) - ever),
            "labels lost": now != wanted,
        }
        return [what for what, is_so in found.items() if is_so]


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


# -- what there has to be ------------------------------------------------------------------------------------------


def _workspace(folder: Path) -> Path:
    """One without labels: round 0 asks for every image."""
    (folder / "images").mkdir()
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (160, 140, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    root = folder / "base"
    root.mkdir()
    initialise(
        root,
        source=f"folder:{folder / 'images'}",
        imbalance=None,
        initial=IMAGES - 2,
        holdout=2 / IMAGES,
        seed=0,
        classes=list(CLASSES),
        name=None,
        settings={"classifier.learner": "scratch"},
        versions=Versioning(root),
        prepare=lambda _storage: None,
    )
    return root


def _copy(base: Path, folder: Path, number: int) -> Workspace:
    return Workspace(Path(shutil.copytree(base, folder / f"workspace-{number}")))


if __name__ == "__main__":
    sys.exit(main())
